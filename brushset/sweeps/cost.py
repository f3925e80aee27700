"""What a sweep will cost, before it starts: steps by arithmetic, time from runs on record, disk from what runs left.

Time is told only from runs that did the same work on the same kind of machine: device, engine, base, size and batch. A run
of another size says little about this one, and a made-up figure is worse than none.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from brushset.errors import BrushsetError
from brushset.files import list_files
from brushset.load import load_style
from brushset.manifest import read_manifest
from brushset.paths import RunPaths, RunsDir
from brushset.spec import StyleSpec
from brushset.stage_records import load_record

_AFTER_TRAINING = ("choose", "convert", "evaluate", "export", "report")
_MOST_LOOKED_AT = 200


@dataclass(frozen=True)
class Past:
    """What one run on record took; None where it did not come so far, or took the result from another run."""

    spec: StyleSpec
    step_s: float | None
    start_s: float
    after_s: float | None
    run_bytes: float | None


@dataclass(frozen=True)
class Pace:
    """Medians over `runs` that were alike; None where there are none. `start_s` is what training takes besides its steps."""

    runs: int = 0
    step_s: float | None = None
    start_s: float = 0.0
    after_s: float | None = None
    run_bytes: float | None = None


@dataclass(frozen=True)
class Planned:
    """One run to come; `bare_bytes` is what its adapters and states take at most."""

    steps: int
    pace: Pace
    bare_bytes: int


@dataclass(frozen=True)
class Cost:
    """What so many runs take, one after the other; None is unknown. `training_minutes` and `after_minutes` are of the
    device; `from_runs` the fewest runs that one of these figures stands on.
    """

    runs: int
    steps: int
    training_minutes: float | None
    after_minutes: float | None
    disk_bytes: float
    disk_known: bool
    from_runs: int


def read_history(runs: RunsDir, device: str) -> list[Past]:
    """What the newest runs of all styles took that were done on this kind of device."""
    found = [run for style in runs.styles() for run in runs.runs_of(style)]
    newest = sorted(found, key=lambda run: run.run_id, reverse=True)[:_MOST_LOOKED_AT]
    return [past for run in newest if (past := _past(run, device))]


def pace_of(spec: StyleSpec, history: Sequence[Past]) -> Pace:
    """How fast runs like this one were, of any style."""
    alike = [past for past in history if _work(past.spec) == _work(spec)]
    timed = [past for past in alike if past.step_s is not None]
    evaluated = [past for past in alike if _evaluation(past.spec) == _evaluation(spec)]
    return Pace(
        runs=len(timed),
        step_s=_median(past.step_s for past in timed),
        start_s=_median(past.start_s for past in timed) or 0.0,
        after_s=_median(past.after_s for past in evaluated),
        run_bytes=_median(past.run_bytes for past in evaluated if _files(past.spec) == _files(spec)),
    )


def add_up(planned: Sequence[Planned], *, evaluates: bool) -> Cost:
    """The cost of all of them; `evaluates` where they go on after training."""
    paces = [each.pace for each in planned]
    training = [each.steps * each.pace.step_s + each.pace.start_s for each in planned if each.pace.step_s is not None]
    after = [pace.after_s for pace in paces if pace.after_s is not None] if evaluates else [0.0] * len(paces)
    return Cost(
        runs=len(planned),
        steps=sum(each.steps for each in planned),
        training_minutes=sum(training) / 60 if len(training) == len(planned) else None,
        after_minutes=sum(after) / 60 if len(after) == len(planned) else None,
        disk_bytes=sum(each.pace.run_bytes or each.bare_bytes for each in planned),
        disk_known=all(pace.run_bytes is not None for pace in paces),
        from_runs=min((pace.runs for pace in paces), default=0),
    )


def _past(run: RunPaths, device: str) -> Past | None:
    manifest = read_manifest(run)
    if manifest is None or _kind(manifest.device) != _kind(device):
        return None
    try:
        spec = load_style(run.spec)
    except BrushsetError:
        return None
    step_s, start_s = _training_pace(run)
    whole = load_record(run, "report") is not None
    return Past(spec, step_s, start_s, _seconds_after(run), _own_bytes(run) if whole else None)


def _training_pace(run: RunPaths) -> tuple[float | None, float]:
    """Seconds a step, and of all else in training: imports, models, latents, where the engine tells them apart."""
    record = load_record(run, "train")
    told = record.data if record is not None and not record.taken_from else {}
    if not told.get("steps") or not told.get("seconds"):
        return None, 0.0
    stepping = told.get("phases", {}).get("training") or told["seconds"]
    return stepping / told["steps"], max(0.0, told["seconds"] - stepping)


def _seconds_after(run: RunPaths) -> float | None:
    found = [load_record(run, stage) for stage in _AFTER_TRAINING]
    records = [record for record in found if record is not None and not record.taken_from]
    if len(records) < len(_AFTER_TRAINING):
        return None
    return sum(record.ended_at - record.started_at for record in records)


def _work(spec: StyleSpec) -> tuple[object, ...]:
    """What a training step's time hangs on; not on the rank, whose arithmetic is small beside that of the UNet."""
    train = spec.train
    return (
        spec.base.model, spec.dataset.resolution, train.engine, train.batch_size, train.gradient_accumulation_steps,
        train.processes, train.mixed_precision, train.gradient_checkpointing, train.train_text_encoder, train.optimizer,
        train.attention, train.compile,
    )  # fmt: skip


def _evaluation(spec: StyleSpec) -> tuple[object, ...]:
    return spec.evaluate, spec.export.targets, spec.train.epochs, spec.train.max_steps


def _files(spec: StyleSpec) -> tuple[object, ...]:
    return spec.train.network_dim, spec.train.save_every_n_epochs, spec.train.save_precision


def _kind(device: str) -> str:
    """The device's name, without what tells one of its kind from another."""
    return device.split(",", maxsplit=1)[0]


def _own_bytes(run: RunPaths) -> float:
    """Bytes that are this run's; of what several runs share by links, its part."""
    found = {(info.st_dev, info.st_ino): info for info in (path.stat() for path in list_files(run.root))}
    return sum(info.st_size / info.st_nlink for info in found.values())


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
