"""The embedded engine: no child process, no sd-scripts. See brushset.native for how it trains."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brushset import __version__
from brushset.engines import refuse_several
from brushset.errors import UsageError
from brushset.native.checkpoint import checkpoint_name, finish_metadata, write_checkpoint
from brushset.native.dataset import Length, TrainingSet, plan_length, read_training_set
from brushset.native.metadata import Origin, model_spec, training_metadata
from brushset.native.optim import describe_optimizer
from brushset.native.settings import NativeSettings, read_settings
from brushset.native.tracking import Tracker
from brushset.protocols import Emit, TrainJob
from brushset.records import Checkpoint, LossPoint, Trained
from brushset.spec import TrainSection

if TYPE_CHECKING:
    from brushset.native.loop import Session, Update


@dataclass
class NativeEngine:
    """Trains in this process. `device` is "cpu", "cuda" or None for the GPU where there is one."""

    device: str | None = None
    name: str = "native"

    def command(self, job: TrainJob) -> list[str]:  # noqa: ARG002 - the protocol's signature
        """Nothing: there is no child process."""
        return []

    def train(self, job: TrainJob, emit: Emit) -> Trained:
        """Trains what the job's TOML pair says. See brushset.protocols.Engine."""
        started, clock = time.time(), time.monotonic()
        refuse_several(job.spec.train.processes)
        _refuse_what_kohya_does(job.spec.train)
        settings = read_settings(job.run.dataset_toml, job.run.training_toml, root=job.run.root)
        images = read_training_set(settings)
        length = plan_length(images.plan, settings.dataset, settings.training)
        _check_plan(job, length)
        device = self._choose_device()
        with Tracker(settings, job.run.train_log) as tracker:
            tracker.line(f"native: {len(images.images)} images, {length.steps} steps, device {device}")
            session = _open(job, settings, images, length, device=device, emit=emit)
            origin = Origin(job.base, describe_optimizer(session.optimizer, settings.training), started, __version__)
            keeper = _Keeper(job, session, training_metadata(settings, images, length, origin), origin)
            losses = _run(session, length, keeper, tracker, emit)
        *earlier, final = keeper.kept
        return Trained(
            engine=self.name,
            engine_version=__version__,
            command=(),
            weights=final.path,
            weights_sha256=final.sha256,
            checkpoints=tuple(earlier),
            steps=final.step,
            epochs=final.epoch,
            losses=tuple(losses),
            seconds=round(time.monotonic() - clock, 3),
            device=_device_name(device),
            modules=len(session.adapter.layers),
            tensors=3 * len(session.adapter.layers),
            base_sha256=job.base.sha256,
            base_random=job.base.random,
        )

    def _choose_device(self) -> str:
        import torch

        return self.device or ("cuda" if torch.cuda.is_available() else "cpu")


class _Keeper:
    """Writes the files of a run below the job's output folder, and remembers them."""

    def __init__(self, job: TrainJob, session: Session, metadata: dict[str, str], origin: Origin) -> None:
        self.kept: list[Checkpoint] = []
        self._job, self._session, self._metadata, self._origin = job, session, metadata, origin

    def is_due(self, update: Update, length: Length) -> bool:
        """Whether an epoch's file is to be written; never for the last epoch, which the final file holds."""
        every = self._session.settings.training.save_every_n_epochs
        return bool(every and update.ends_epoch and update.epoch < length.epochs and update.epoch % every == 0)

    def keep(self, *, epoch: int, step: int, last: bool) -> Path:
        """Writes one file."""
        import torch

        training = self._session.settings.training
        dtypes = {"float": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, None: None}
        tensors = self._session.adapter.state(dtypes[training.save_precision])
        metadata = finish_metadata(self._metadata, epoch=epoch, step=step)
        metadata |= model_spec(self._session.settings, self._origin, time.time())
        path = self._job.output_dir / checkpoint_name(training.output_name, None if last else epoch)
        digest = write_checkpoint(path, tensors, metadata)
        self.kept.append(Checkpoint(path=path.name, epoch=epoch, step=step, sha256=digest))
        return path


def _run(session: Session, length: Length, keeper: _Keeper, tracker: Tracker, emit: Emit) -> list[LossPoint]:
    """Trains to the end, telling of each step and keeping files."""
    from brushset.native.loop import run_updates

    losses: list[LossPoint] = []
    begun = time.monotonic()
    for update in run_updates(session, length):
        groups = dict(zip(session.groups, session.optimizer.param_groups, strict=True))
        tracker.update(update, groups)
        rate = update.rates.get("unet", next(iter(update.rates.values())))
        losses.append(LossPoint(step=update.step, loss=update.loss, lr=rate))
        per_second = update.step / max(time.monotonic() - begun, 1e-9)
        tracker.line(
            f"epoch {update.epoch}/{length.epochs} step {update.step}/{length.steps} loss {update.loss:.4f} "
            f"average {update.average:.4f} lr {rate:.3e} {per_second:.3f} it/s"
        )
        emit(
            "train_step",
            step=update.step,
            total=length.steps,
            loss=update.loss,
            lr=rate,
            it_per_s=per_second,
            eta_s=(length.steps - update.step) / per_second,
        )
        if keeper.is_due(update, length):
            tracker.line(f"saved {keeper.keep(epoch=update.epoch, step=update.step, last=False).name}")
    tracker.line(f"saved {keeper.keep(epoch=length.epochs, step=length.steps, last=True).name}")
    return losses


def _open(
    job: TrainJob, settings: NativeSettings, images: TrainingSet, length: Length, *, device: str, emit: Emit
) -> Session:
    """Loads the base, caches the latents, lets go of the VAE, and opens the session."""
    import torch

    from brushset.bases.load import load_components
    from brushset.native.latents import encode_images
    from brushset.native.loop import check_device, open_session

    training = settings.training
    check_device(training, device)
    torch.set_float32_matmul_precision("high" if job.spec.train.tf32 else "highest")
    dtype: Any = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[training.mixed_precision]
    # On a CPU float32 is also the faster one: bfloat16 took ten times as long to encode with.
    vae_dtype = torch.float32 if training.no_half_vae or device == "cpu" else dtype
    vae = load_components(job.base, device=device, dtype=vae_dtype, parts=("vae",)).vae
    latents = encode_images(
        images, vae, settings, lambda done, total: emit("progress", what="latents", done=done, total=total)
    )
    del vae
    models = load_components(job.base, device=device, dtype=dtype, parts=("unet", "text_encoder", "tokenizer"))
    return open_session(settings, images, length, latents, models)


def _refuse_what_kohya_does(train: TrainSection) -> None:
    """The settings of a running training that only the other engine has."""
    asked = [key for key in ("validate_every_n_epochs", "sample_every_n_epochs") if getattr(train, key)]
    if asked:
        raise UsageError(
            f'[train] {" and ".join(asked)}: the native engine has no such thing; fix: 0, or engine = "kohya"'
        )


def _check_plan(job: TrainJob, length: Length) -> None:
    """The length that was announced must be the one that is trained."""
    planned, found = (job.steps, job.batches_per_epoch), (length.steps, length.batches_per_epoch)
    if planned != found:
        raise UsageError(
            f"{job.run.training_toml}: makes {found[0]} steps of {found[1]} batches an epoch, {planned[0]} and "
            f"{planned[1]} were planned; run configure again"
        )


def _device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device.startswith("cuda") else device
