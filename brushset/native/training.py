"""One job on its way through the trainer: its files, its log, what is told of it, and what the next attempt goes on from.

attempts/<digest>/native/state.safetensors     the newest state
                        /<style>-000003.safetensors   epochs saved before it; a later attempt takes them over
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from brushset import __version__
from brushset.errors import BrushsetError, EnvironmentProblem, UsageError
from brushset.files import link_or_copy, sha256_file
from brushset.native.checkpoint import checkpoint_name, finish_metadata, write_checkpoint
from brushset.native.dataset import Length, plan_length, read_training_set
from brushset.native.metadata import Origin, model_spec, training_metadata
from brushset.native.optim import describe_optimizer
from brushset.native.settings import read_settings
from brushset.native.state import FILE, SavedState, fingerprint, read_state, save_state
from brushset.native.tracking import Tracker
from brushset.protocols import Emit, TrainJob
from brushset.records import Checkpoint, LossPoint, Trained

if TYPE_CHECKING:
    from brushset.native.loop import Update
    from brushset.native.session import Session


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
        self.length = plan_length(self.images.plan, self.settings.dataset, self.settings.training)
        _check_plan(job, self.length)
        self.failure: BrushsetError | None = None
        self.kept: list[Checkpoint] = []
        self.losses: list[LossPoint] = []
        self._started, self._begun, self._before_s = time.time(), time.monotonic(), 0.0
        self._first_step = 0
        self._state = job.attempts / "native" / FILE
        self._of = fingerprint(self.settings, self.images, job.base.sha256)
        self._saved_at = time.monotonic()

    def __enter__(self) -> Training:  # noqa: PYI034 - Self is not in Python 3.10
        self.tracker = Tracker(self.settings, self.job.run.train_log)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.tracker.__exit__(kind, error, None)

    def start(self, session: Session) -> None:
        """Takes its session, and goes on from an earlier attempt's state where there is one."""
        self._session = session
        session.pause = self._is_due
        if self.job.anew:
            self._state.unlink(missing_ok=True)
        if self._state.is_file():
            try:
                self._take_over(read_state(self._state, of=self._of))
            except EnvironmentProblem as error:
                self.emit("warning", text=f"training begins anew: {error}")
        self._origin = Origin(
            self.job.base, describe_optimizer(session.optimizer, self.settings.training), self._started, __version__
        )
        self._metadata = training_metadata(self.settings, self.images, self.length, self._origin)
        self._begun = self._saved_at = time.monotonic()

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
        if self._is_due(update.step, update.epoch, update.ends_epoch):
            self._keep(epoch=update.epoch, step=update.step, last=False)
        if update.step == total:
            self._keep(epoch=self.length.epochs, step=total, last=True)
        elif update.current:
            self._save_state()

    def fail(self, error: BrushsetError) -> None:
        """Notes what ended it before its end."""
        self.failure = error
        self.tracker.line(f"stopped: {type(error).__name__}: {error}")

    def result(self, *, device: str, seconds: float) -> Trained:
        """The record of a training that came to its end."""
        *earlier, final = self.kept
        layers = self._session.adapter.layers
        return Trained(
            engine="native",
            engine_version=__version__,
            command=(),
            weights=final.path,
            weights_sha256=final.sha256,
            checkpoints=tuple(earlier),
            steps=final.step,
            epochs=final.epoch,
            losses=tuple(self.losses),
            seconds=round(self._before_s + seconds, 3),
            device=device,
            modules=len(layers),
            tensors=3 * len(layers),
            base_sha256=self.job.base.sha256,
            base_random=self.job.base.random,
        )

    def _is_due(self, _step: int, epoch: int, ends_epoch: bool) -> bool:  # noqa: FBT001 - the session's `pause`
        """Whether an epoch's file is to be written; never for the last epoch, which the final file holds."""
        every = self.settings.training.save_every_n_epochs
        return bool(every and ends_epoch and epoch < self.length.epochs and epoch % every == 0)

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
        self.kept.append(Checkpoint(path=path.name, epoch=epoch, step=step, sha256=digest))
        self.tracker.line(f"saved {path.name}")

    def _save_state(self) -> None:
        """Saves what an interruption would cost, where save_state_minutes have gone by."""
        minutes = self.job.spec.train.save_state_minutes
        if not minutes or time.monotonic() - self._saved_at < 60 * minutes:
            return
        for kept in self.kept:
            held = self._state.with_name(kept.path)
            if not held.is_file():
                held.parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(self.job.output_dir / kept.path, held)
        told: dict[str, Any] = {
            "started": self._started,
            "seconds": self._before_s + time.monotonic() - self._begun,
            "losses": [(point.step, point.loss, point.lr) for point in self.losses],
            "kept": [kept.model_dump(mode="json") for kept in self.kept],
        }
        save_state(self._state, self._session, of=self._of, told=told)
        self._saved_at = time.monotonic()
        self.tracker.line(f"saved the state after step {self._session.step}")

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
        self.kept = kept
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
