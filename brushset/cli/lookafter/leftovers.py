"""What in a folder of runs could go, and what going would cost. Nothing here removes anything.

Never: weights, captions, prepared images, records, logs, settings; anything of a run that somebody works on or waits for;
anything but half-done files of the run that a style's `latest` names, of its newest run, or of a run of a sweep.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from brushset.cli.lookafter.state import RunState, read_state
from brushset.errors import BrushsetError
from brushset.files import list_files
from brushset.paths import RunPaths, RunsDir
from brushset.stage_records import load_record
from brushset.sweeps.ledger import find_sweeps, load_sweep

Kind = Literal["half-done", "refused", "states", "trainer", "submission", "pictures"]
_OLD_S = 7 * 86400.0
_REMADE = ("evaluate", "choose", "export")
_NEVER = frozenset({"weights", "images", "logs", "records", "config", "adapter", "audit"})


@dataclass(frozen=True)
class Leftover:
    """A folder or file that could go. `size_bytes` is what the disk gets back: nothing for what other runs link to."""

    kind: Kind
    path: Path
    size_bytes: int
    why: str


def find_leftovers(runs: RunsDir, styles: Sequence[str], *, pictures: bool, now: float | None = None) -> list[Leftover]:
    """All that could go of these styles' runs; `pictures` also names what a command could make again of older runs."""
    of_sweeps = _runs_of_sweeps(runs)
    found: list[Leftover] = []
    for style in styles:
        states = [state for run in runs.runs_of(style) if (state := read_state(run))]
        newest = {run.root.name for run in (runs.latest(style), states[-1].run if states else None) if run}
        for state in states:
            if not state.is_open:
                found += _half_done(state.run)
                found += _of_training(state, kept=state.run.run_id in newest or state.run.root in of_sweeps)
                if pictures and state.run.run_id not in newest and state.run.root not in of_sweeps:
                    found += _pictures(state.run)
    return found + list(_submissions(runs, time.time() if now is None else now))


def _half_done(run: RunPaths) -> Iterator[Leftover]:
    """What a killed process left beside a stage's folder; published ones have other names."""
    for path in sorted([*run.root.glob(".tmp-*"), *run.root.glob(".old-*"), *run.root.glob("*/.scratch")]):
        yield _leftover("half-done", path, "half-done, by a process that is gone")


def _of_training(state: RunState, *, kept: bool) -> Iterator[Leftover]:
    run = state.run
    for path in sorted(run.attempts.glob("*-refused")):
        yield _leftover("refused", path, "states of a result that was refused; it is trained anew without them")
    trained = load_record(run, "train") is not None
    for path in sorted(run.attempts.glob("*")):
        if not path.name.endswith("-refused") and path.is_dir() and not kept:
            why = "its training is finished" if trained else "an older run's unfinished training: it would begin anew"
            yield _leftover("states", path, f"states to go on from; {why}")
    trainer = run.logs / "trainer"
    if trainer.is_dir() and trained and not kept:
        yield _leftover("trainer", trainer, "what else the trainer left: samples, states")


def _pictures(run: RunPaths) -> Iterator[Leftover]:
    """What can be made again from the weights: the images of evaluation and choice, and the packages."""
    for stage in _REMADE:
        record = load_record(run, stage)
        folders = sorted({path.split("/", 1)[0] for path in record.outputs if "/" in path}) if record else []
        for name in folders:
            if name not in _NEVER and (run.root / name).is_dir():
                yield _leftover("pictures", run.root / name, f"an older run's; {stage} makes it again")


def _submissions(runs: RunsDir, now: float) -> Iterator[Leftover]:
    """Lists and scripts of batch jobs, a week after their last word."""
    for path in sorted(runs.submission("x").parent.glob("*")):
        if path.is_dir() and now - max(file.stat().st_mtime for file in [path, *list_files(path)]) > _OLD_S:
            yield _leftover("submission", path, "of batch jobs submitted over a week ago")


def _runs_of_sweeps(runs: RunsDir) -> set[Path]:
    """Folders that a sweep's report tells of."""
    found: set[Path] = set()
    for folder in find_sweeps(runs):
        try:
            found |= {run.root for run in load_sweep(runs, folder.name).runs(runs)}
        except BrushsetError:  # noqa: PERF203 - of another version: what it tells of is not known
            continue
    return found


def _leftover(kind: Kind, path: Path, why: str) -> Leftover:
    files = list_files(path) if path.is_dir() else [path]
    size = sum(info.st_size for info in (file.stat() for file in files) if info.st_nlink == 1)
    return Leftover(kind, path, size, why)
