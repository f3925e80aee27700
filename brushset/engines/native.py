"""The embedded engine: no child process, no sd-scripts. One style, or several in one pass over one base.

See brushset.native for how it trains. Styles go together where base, precision, rank and what else the models share are
equal; the others are trained after them, and it is said why. Each one's result is as if it had been trained alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from brushset.engines import refuse_several
from brushset.errors import BrushsetError, TrainerFailed, UsageError
from brushset.native.training import Training
from brushset.protocols import Emit, TrainJob
from brushset.records import Trained
from brushset.spec import TrainSection

if TYPE_CHECKING:
    from brushset.native.session import Session


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
        (result,) = self.train_packed([(job, emit)])
        if isinstance(result, BrushsetError):
            raise result
        return result

    def train_packed(self, jobs: Sequence[tuple[TrainJob, Emit]]) -> list[Trained | BrushsetError]:
        """Trains several jobs, as many at once as fit together; each is told of through its own `emit`. One that fails
        leaves its error in its place and does not touch the others.
        """
        results: dict[int, Trained | BrushsetError] = {}
        ready: dict[int, Training] = {}
        for index, (job, emit) in enumerate(jobs):
            try:
                refuse_several(job.spec.train.processes)
                _refuse_what_kohya_does(job.spec.train)
                ready[index] = Training(job, emit)
            except BrushsetError as error:  # noqa: PERF203 - one job that cannot be trained stops no other
                results[index] = error
        device = self._choose_device()
        packs: dict[str, list[int]] = {}
        for index, training in ready.items():
            packs.setdefault(repr(_shared(training)), []).append(index)
        _tell_what_goes_apart([[ready[index] for index in indices] for indices in packs.values()])
        for indices in packs.values():
            results |= _train_pack({index: ready[index] for index in indices}, device)
        return [results[index] for index in range(len(jobs))]

    def _choose_device(self) -> str:
        import torch

        return self.device or ("cuda" if torch.cuda.is_available() else "cpu")


def _train_pack(trainings: dict[int, Training], device: str) -> dict[int, Trained | BrushsetError]:
    """Trains jobs that share their models, all at once."""
    results: dict[int, Trained | BrushsetError] = {}
    clock = time.monotonic()
    with ExitStack() as stack:
        for training in trainings.values():
            stack.enter_context(training)
        try:
            sessions = _open(list(trainings.values()), device)
            names = {id(session): index for session, index in zip(sessions, trainings, strict=True)}
            for training, session in zip(trainings.values(), sessions, strict=True):
                training.tracker.line(
                    f"native: {len(training.images.images)} images, {training.length.steps} steps, device {device}"
                    + (f", with {len(sessions) - 1} other styles" if len(sessions) > 1 else "")
                )
                training.start(session)
            _train_sessions(sessions, [trainings[names[id(session)]] for session in sessions])
        except BrushsetError as error:
            for training in trainings.values():
                training.fail(error)
    for index, training in trainings.items():
        seconds = time.monotonic() - clock
        results[index] = training.failure or training.result(device=_device_name(device), seconds=seconds)
    return results


def _train_sessions(sessions: Sequence[Session], trainings: Sequence[Training]) -> None:
    from brushset.native.loop import run_together

    for session, told in run_together(sessions):
        training = trainings[session.row]
        if isinstance(told, TrainerFailed):
            training.fail(told)
        else:
            training.tell(told)


def _open(trainings: Sequence[Training], device: str) -> list[Session]:
    """Loads the base once, caches the latents of all styles, lets go of the VAE, and opens the sessions."""
    import torch

    from brushset.bases.load import load_components
    from brushset.native.latents import encode_images
    from brushset.native.session import Style, check_device, open_pack

    job, recipe = trainings[0].job, trainings[0].settings.training
    check_device(recipe, device)
    torch.set_float32_matmul_precision("high" if job.spec.train.tf32 else "highest")
    torch.backends.cudnn.benchmark = device != "cpu"  # a few shapes, thousands of times each
    dtype: Any = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[recipe.mixed_precision]
    # On a CPU float32 is also the faster one: bfloat16 took ten times as long to encode with.
    vae_dtype = torch.float32 if recipe.no_half_vae or device == "cpu" else dtype
    vae = load_components(job.base, device=device, dtype=vae_dtype, parts=("vae",)).vae
    latents = []
    for training in trainings:
        emit = training.emit
        latents.append(
            encode_images(
                training.images,
                vae,
                training.settings,
                lambda done, total, emit=emit: emit("progress", what="latents", done=done, total=total),  # type: ignore[misc]
            )
        )
    del vae
    models = load_components(job.base, device=device, dtype=dtype, parts=("unet", "text_encoder", "tokenizer"))
    styles = [
        Style(each.settings, each.images, each.length, held) for each, held in zip(trainings, latents, strict=True)
    ]
    return open_pack(styles, models)


def _shared(training: Training) -> dict[str, object]:
    """What must be equal for two jobs to share one pass."""
    from brushset.native.optim import shared_settings

    job = training.job
    return {
        "base": job.base.sha256,
        "tf32": job.spec.train.tf32,
        "no_half_vae": training.settings.training.no_half_vae,
        **shared_settings(training.settings.training),
    }


def _tell_what_goes_apart(packs: Sequence[Sequence[Training]]) -> None:
    """Says which styles cannot go with the first ones, and for which settings."""
    for pack in packs[1:]:
        first, own = _shared(packs[0][0]), _shared(pack[0])
        differing = [f"{key} {own[key]} instead of {first[key]}" for key in own if own[key] != first[key]]
        for training in pack:
            name = packs[0][0].job.spec.name
            training.emit("note", text=f"{training.job.spec.name} is not trained beside {name}: {', '.join(differing)}")


def _refuse_what_kohya_does(train: TrainSection) -> None:
    """The settings of a running training that only the other engine has."""
    asked = [key for key in ("validate_every_n_epochs", "sample_every_n_epochs") if getattr(train, key)]
    if asked:
        raise UsageError(
            f'[train] {" and ".join(asked)}: the native engine has no such thing; fix: 0, or engine = "kohya"'
        )


def _device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device.startswith("cuda") else device
