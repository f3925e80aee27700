"""One job on its way through the trainer: its files, its log, what is told of it, and what the next attempt goes on from.

attempts/<digest>/native/state.safetensors     the newest state
                        /<style>-000003.safetensors   epochs saved before it; a later attempt takes them over

Which epoch's weights are published where validation chooses, and when training ends early: brushset.patience.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from brushset import __version__
from brushset.errors import BrushsetError, EnvironmentProblem, UsageError
from brushset.files import link_or_copy, sha256_file
from brushset.native.checkpoint import checkpoint_name, finish_metadata, write_checkpoint
from brushset.native.dataset import Length, plan_length, read_heldout, read_training_set
from brushset.native.metadata import Origin, model_spec, training_metadata
from brushset.native.optim import describe_optimizer
from brushset.native.settings import read_settings
from brushset.native.state import FILE, SavedState, fingerprint, read_state, save_state
from brushset.native.tracking import Tracker
from brushset.patience import Choice, choose_epoch, describe_stop
from brushset.protocols import Emit, TrainJob
from brushset.records import Checkpoint, LossPoint, Trained, ValidationPoint

if TYPE_CHECKING:
    import torch

    from brushset.native.heldout import Heldout
    from brushset.native.loop import Update
    from brushset.native.session import Session


@dataclass
class Best:
    """The weights of the best epoch by validation so far, in full precision, on the CPU."""

    epoch: int
    step: int
    weights: torch.Tensor


class Training(AbstractContextManager["Training"]):
    """One job. Opened before any model is loaded, so that what is wrong with its settings is told first.

    Raises:
        UsageError: keys that are not honoured; a length that is not the planned one.
        InputError: images or captions that cannot be trained on.
    """

    def __init__(self, job: TrainJob, emit: Emit) -> None:
        self.job, self.emit = job, emit
        self.settings = read_settings(job.run.dataset_toml, job.run.training_toml, root=job.run.root)
        self.images = read_training_set(self.settings)
        self.heldout_images = read_heldout(self.settings)
        self.length = plan_length(self.images.plan, self.settings.dataset, self.settings.training)
        _check_plan(job, self.length)
        self.failure: BrushsetError | None = None
        self.heldout: Heldout | None = None
        self.ended = False
        self.kept: list[Checkpoint] = []
        self.losses: list[LossPoint] = []
        self.validation: list[ValidationPoint] = []
        self._best: Best | None = None
        self._save_all: Callable[[], None] | None = None
        self._started, self._begun, self._before_s = time.time(), time.monotonic(), 0.0
        self._first_step = 0
        self._state = job.attempts / "native" / FILE
        self._of = fingerprint(self.settings, (self.images, self.heldout_images), job.base.sha256)

    def __enter__(self) -> Training:  # noqa: PYI034 - Self is not in Python 3.10
        self.tracker = Tracker(self.settings, self.job.run.train_log)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.tracker.__exit__(kind, error, None)

    def start(self, session: Session, save_all: Callable[[], None] | None = None) -> None:
        """Takes its session, and goes on from an earlier attempt's state where there is one: then it may have `ended`.
        `save_all` saves its state together with those of the ones that are trained beside it.
        """
        self._session, self._save_all = session, save_all
        session.pause = lambda step, epoch, ends: self._is_due(epoch, ends) or self._validates(step, epoch, ends)
        if self.job.anew:
            self._state.unlink(missing_ok=True)
        if self._state.is_file():
            try:
                self._take_over(read_state(self._state, of=self._of))
            except EnvironmentProblem as error:
                self.emit("warning", text=f"training begins anew: {error}")
        optimizer = describe_optimizer(session.optimizer, self.settings.training)
        validated = len(self.heldout_images.images) if self.heldout_images else 0
        self._origin = Origin(self.job.base, optimizer, self._started, __version__, validated)
        self._metadata = training_metadata(self.settings, self.images, self.length, self._origin)
        self._begun = time.monotonic()

    def tell(self, update: Update) -> None:
        """Writes down one update, and the files and the state that are due after it."""
        session = self._session
        groups = dict(zip(session.groups, session.optimizer.param_groups, strict=True))
        self.tracker.update(update, groups)
        rate = update.rates.get("unet", next(iter(update.rates.values())))
        self.losses.append(LossPoint(step=update.step, loss=update.loss, lr=rate))
        per_second = (update.step - self._first_step) / max(time.monotonic() - self._begun, 1e-9)
        total = self.length.steps
        self.tracker.line(
            f"epoch {update.epoch}/{self.length.epochs} step {update.step}/{total} loss {update.loss:.4f} "
            f"average {update.average:.4f} lr {rate:.3e} {per_second:.3f} it/s"
        )
        eta_s = (total - update.step) / per_second
        self.emit(
            "train_step", step=update.step, total=total, loss=update.loss, lr=rate, it_per_s=per_second, eta_s=eta_s
        )
        if self._is_due(update.epoch, update.ends_epoch):
            self._keep(epoch=update.epoch, step=update.step, last=False)
        ends = self._validates(update.step, update.epoch, update.ends_epoch) and self._validate(update)
        if ends or update.step == total:
            self._end(epoch=update.epoch, step=update.step)

    def fail(self, error: BrushsetError) -> None:
        """Notes what ended it before its end."""
        self.failure = error
        self.tracker.line(f"stopped: {type(error).__name__}: {error}")

    def result(self, *, device: str, seconds: float) -> Trained:
        """The record of a training that came to its end."""
        *earlier, final = self.kept
        layers, choice = self._session.adapter.layers, self._choice()
        epochs = (choice and choice.stop_epoch) or self.length.epochs
        return Trained(
            engine="native",
            engine_version=__version__,
            command=(),
            weights=final.path,
            weights_sha256=final.sha256,
            checkpoints=tuple(earlier),
            steps=self._session.step,
            epochs=epochs,
            validation=tuple(self.validation),
            best_epoch=choice.best_epoch if choice else None,
            stopped_early=describe_stop(choice, self.validation, self.length.epochs),
            losses=tuple(self.losses),
            seconds=round(self._before_s + seconds, 3),
            device=device,
            modules=len(layers),
            tensors=3 * len(layers),
            base_sha256=self.job.base.sha256,
            base_random=self.job.base.random,
        )

    def _is_due(self, epoch: int, ends_epoch: bool) -> bool:  # noqa: FBT001 - as the session says it
        """Whether an epoch's file is to be written; never for the last epoch, which the final file holds."""
        every = self.settings.training.save_every_n_epochs
        return bool(every and ends_epoch and epoch < self.length.epochs and epoch % every == 0)

    def _validates(self, step: int, epoch: int, ends_epoch: bool) -> bool:  # noqa: FBT001 - as the session says it
        """Whether the held-out images are looked at after this step: at an epoch's end, and where the training's own cuts
        an epoch short.
        """
        every = self.settings.training.validate_every_n_epochs or 1
        ends = ends_epoch or step == self.length.steps
        return self.heldout is not None and ends and epoch % every == 0

    def _validate(self, update: Update) -> bool:
        """Measures the loss on the held-out images; returns whether nothing better is to be hoped for."""
        from brushset.native.validation import measure

        assert self.heldout is not None, "the caller has looked"
        found = measure(self._session, self.heldout)
        point = ValidationPoint(epoch=update.epoch, step=update.step, loss=found.heldout, train_loss=found.trained)
        self.validation.append(point)
        self.tracker.validation(point, update.average)
        self.emit("validation", epoch=point.epoch, loss=point.loss, train_loss=point.train_loss)
        choice = self._choice()
        if choice and choice.best_epoch == update.epoch:
            flat, row = self._session.pack.flat, self._session.row
            weights = flat.strip(row, flat.master[row]).to("cpu", copy=True)
            self._best = Best(update.epoch, update.step, weights)
        return bool(choice and choice.stop_epoch)

    def _choice(self) -> Choice | None:
        patience = self.job.spec.train.early_stop_patience
        return choose_epoch(self.validation, patience) if patience else None

    def _end(self, *, epoch: int, step: int) -> None:
        """Writes the final file: of the best epoch where validation chose another than the last, which is kept then."""
        best = self._best
        if best is not None and best.epoch != epoch:
            if epoch not in {kept.epoch for kept in self.kept}:
                self._keep(epoch=epoch, step=step, last=False)
            flat, row = self._session.pack.flat, self._session.row
            flat.master[row].copy_(flat.pad(row, best.weights))
            flat.refresh()
            epoch, step = best.epoch, best.step
        self._keep(epoch=epoch, step=step, last=True)
        self.ended = self._session.stopped = True
        if self._save_all is not None:
            self._save_all()

    def _keep(self, *, epoch: int, step: int, last: bool) -> None:
        """Writes a file of the weights as they are."""
        import torch

        training = self.settings.training
        dtypes = {"float": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, None: None}
        tensors = self._session.adapter.state(dtypes[training.save_precision])
        metadata = finish_metadata(self._metadata, epoch=epoch, step=step)
        metadata |= model_spec(self.settings, self._origin, time.time())
        path = self.job.output_dir / checkpoint_name(training.output_name, None if last else epoch)
        digest = write_checkpoint(path, tensors, metadata)
        if self.job.spec.train.save_state_minutes:
            link_or_copy(path, self._state.with_name(path.name))
        self.kept.append(Checkpoint(path=path.name, epoch=epoch, step=step, sha256=digest))
        self.tracker.line(f"saved {path.name}")

    def write_state(self) -> None:
        """Saves where it is, beside the state before; `take_state` puts it into its place.

        Raises:
            EnvironmentProblem: the disk is full or the folder cannot be written.
        """
        told: dict[str, Any] = {
            "started": self._started,
            "seconds": self._before_s + time.monotonic() - self._begun,
            "losses": [(point.step, point.loss, point.lr) for point in self.losses],
            "kept": [kept.model_dump(mode="json") for kept in self.kept],
            "validation": [point.model_dump(mode="json") for point in self.validation],
            "best": [self._best.epoch, self._best.step] if self._best else None,
            "ended": self.ended,
        }
        best = {"best": self._best.weights} if self._best and not self.ended else {}
        save_state(self._next_state, self._session, of=self._of, told=told, beside=best)

    def take_state(self) -> None:
        """Makes what `write_state` wrote the state to go on from."""
        self._next_state.replace(self._state)
        self.tracker.line(f"saved the state after step {self._session.step}")

    @property
    def is_told(self) -> bool:
        """Whether all that was done has been told: a state says the one and the other."""
        return (self.losses[-1].step if self.losses else 0) == self._session.step

    @property
    def _next_state(self) -> Path:
        return self._state.with_name(f"next-{FILE}")

    def _take_over(self, state: SavedState) -> None:
        """What an earlier attempt told and wrote is this one's.

        Raises:
            EnvironmentProblem: one of its files is gone or changed; nothing was taken over.
        """
        told = state.told
        kept = [Checkpoint.model_validate(each) for each in told["kept"]]
        for each in kept:
            held = self._state.with_name(each.path)
            if not held.is_file() or sha256_file(held) != each.sha256:
                raise EnvironmentProblem(f"{held}: is gone or was changed")
        for each in kept:
            link_or_copy(self._state.with_name(each.path), self.job.output_dir / each.path)
        state.restore(self._session)
        self.kept, self.ended = kept, told["ended"]
        self._session.stopped = self.ended
        self.validation = [ValidationPoint.model_validate(each) for each in told["validation"]]
        if "best" in state.tensors:
            epoch, step = told["best"]
            self._best = Best(epoch, step, state.tensors["best"])
        self.losses = [LossPoint(step=step, loss=loss, lr=rate) for step, loss, rate in told["losses"]]
        self._started, self._before_s = told["started"], told["seconds"]
        self._first_step = self._session.step
        self.emit("note", text=f"{self.job.spec.name}: goes on from step {self._first_step} of {self.length.steps}")
        self.tracker.line(f"goes on from step {self._first_step}")


def _check_plan(job: TrainJob, length: Length) -> None:
    """The length that was announced must be the one that is trained."""
    planned, found = (job.steps, job.batches_per_epoch), (length.steps, length.batches_per_epoch)
    if planned != found:
        raise UsageError(
            f"{job.run.training_toml}: makes {found[0]} steps of {found[1]} batches an epoch, {planned[0]} and "
            f"{planned[1]} were planned; run configure again"
        )
