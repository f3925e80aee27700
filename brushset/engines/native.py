"""The embedded engine: no child process, no sd-scripts. One style, or several in one pass over one base.

See brushset.native for how it trains. Styles go together where base, precision and what else the models share are
equal; the others are trained after them, and it is said why. Each one's result is as if it had been trained alone, and is
there as soon as its own training ends. Where memory does not suffice for all at once they are halved, and it is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from brushset.engines import refuse_several
from brushset.errors import BrushsetError, TrainerFailed, UsageError
from brushset.failure import free_memory, is_out_of_memory
from brushset.native.packed import train_at_once
from brushset.native.training import Training
from brushset.protocols import Emit, TrainJob
from brushset.records import Trained
from brushset.spec import TrainSection

Ending = tuple[int, Trained | BrushsetError]
"""The place of a job among those that were asked for, and what came of it."""


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
        ((_, result),) = self.train_together([(job, emit)])
        if isinstance(result, BrushsetError):
            raise result
        return result

    def train_together(self, jobs: Sequence[tuple[TrainJob, Emit]]) -> Iterator[Ending]:
        """Trains several jobs, as many at once as fit together; they may be of one style. See
        brushset.protocols.PackingEngine.
        """
        ready: dict[int, Training] = {}
        for index, (job, emit) in enumerate(jobs):
            try:
                refuse_several(job.spec.train.processes)
                _refuse_what_kohya_does(job.spec.train)
                ready[index] = Training(job, emit)
            except BrushsetError as error:  # noqa: PERF203 - one job that cannot be trained stops no other
                yield index, error
        packs = _group(ready)
        ready.clear()
        _tell_what_goes_apart(packs)
        while packs:
            yield from _train_pack(packs.pop(0), self.device)


def _group(trainings: Mapping[int, Training]) -> list[dict[int, Training]]:
    """Those that can share their models, together."""
    packs: dict[str, dict[int, Training]] = {}
    for index, training in trainings.items():
        packs.setdefault(repr(_shared(training)), {})[index] = training
    return list(packs.values())


def _train_pack(pack: dict[int, Training], device: str | None) -> Iterator[Ending]:
    """Trains jobs that share their models: all at once, or one half after the other where memory does not suffice. What
    an attempt held is freed only where nobody else refers to its trainings.
    """
    shortage = ""
    try:
        for index, result in train_at_once(dict(pack), device):
            del pack[index]
            yield index, result
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        shortage = str(error)
    if not shortage:
        return
    jobs = {index: (training.job, training.emit) for index, training in pack.items()}
    pack.clear()
    free_memory()  # nothing refers to the models and adapters of that attempt any more
    if len(jobs) == 1:
        ((index, (job, _)),) = jobs.items()
        yield index, _does_not_fit(job, shortage)
        return
    middle = (len(jobs) + 1) // 2
    _tell_halving(list(jobs.values()), middle)
    for half in (list(jobs)[:middle], list(jobs)[middle:]):
        yield from _train_pack({index: Training(*jobs[index]) for index in half}, device)


def _shared(training: Training) -> dict[str, object]:
    """What must be equal for two jobs to share one pass."""
    from brushset.native.optim import shared_settings

    job = training.job
    return {
        "base": job.base.sha256,
        **{key: getattr(job.spec.train, key) for key in ("tf32", "cuda_graphs", "compile")},
        "no_half_vae": training.settings.training.no_half_vae,
        **shared_settings(training.settings.training),
    }


def _tell_what_goes_apart(groups: Sequence[Mapping[int, Training]]) -> None:
    """Says which styles cannot go with the first ones, and for which settings."""
    packs = [list(group.values()) for group in groups]
    for pack in packs[1:]:
        first, own = _shared(packs[0][0]), _shared(pack[0])
        differing = [f"{key} {own[key]} instead of {first[key]}" for key in own if own[key] != first[key]]
        for training in pack:
            name = packs[0][0].job.spec.name
            text = f"{training.job.spec.name} is trained after {name}, not beside it: {', '.join(differing)}"
            training.emit("note", text=text)


def _tell_halving(jobs: Sequence[tuple[TrainJob, Emit]], middle: int) -> None:
    """Says to each that the styles are too many for the memory."""
    first, second = (", ".join(job.spec.name for job, _ in some) for some in (jobs[:middle], jobs[middle:]))
    for _, emit in jobs:
        emit("warning", text=f"{len(jobs)} styles at once do not fit into memory: {first} now, {second} after that")


def _does_not_fit(job: TrainJob, shortage: str) -> TrainerFailed:
    """What to do where one style alone needs more memory than there is."""
    train = job.spec.train
    fixes = []
    if train.batch_size > 1:
        half = train.batch_size // 2
        steps = train.gradient_accumulation_steps * train.batch_size // half
        fixes.append(f"--batch-size {half} --set train.gradient_accumulation_steps={steps}")
    if not train.gradient_checkpointing:
        fixes.append("--set train.gradient_checkpointing=true")
    return TrainerFailed(
        f"{job.spec.name}: [train] batch_size = {train.batch_size} at {job.spec.dataset.resolution} px does not fit into "
        f"memory; fix: {', or '.join(fixes) or 'a smaller [dataset] resolution, or a GPU with more memory'}",
        detail=shortage,
    )


def _refuse_what_kohya_does(train: TrainSection) -> None:
    """The settings of a running training that only the other engine has."""
    asked = [key for key in ("sample_every_n_epochs",) if getattr(train, key)]
    if asked:
        raise UsageError(
            f'[train] {" and ".join(asked)}: the native engine has no such thing; fix: 0, or engine = "kohya"'
        )
