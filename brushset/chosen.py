"""Which of a run's checkpoints is used, and at which weight: what the stage `choose` recorded; where there is no such
record, or one of an earlier training, the file that training ended with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from brushset.paths import RunPaths
from brushset.records import Choice, Trained
from brushset.stage_records import load_result


@dataclass(frozen=True)
class KeptFile:
    """A checkpoint's file; `path` is in the run."""

    path: str
    sha256: str


@dataclass(frozen=True)
class ChosenAdapter:
    """The adapter of a run. `weight` None: nobody chose one, and [evaluate] weight serves."""

    file: Path
    sha256: str
    epoch: int
    weight: float | None = None


def kept_files(trained: Trained) -> dict[int, KeptFile]:
    """Epoch → its file, in order; the file that training ended with stands for its epoch."""
    kept = {point.epoch: KeptFile(point.path, point.sha256) for point in trained.checkpoints}
    kept[last_epoch(trained)] = KeptFile(trained.weights, trained.weights_sha256)
    return dict(sorted(kept.items()))


def last_epoch(trained: Trained) -> int:
    """Whose weights training ended with: the last epoch's, or those that validation chose."""
    return trained.best_epoch or trained.epochs


def chosen_adapter(run: RunPaths, trained: Trained) -> ChosenAdapter:
    """The checkpoint and weight to use of a run; `trained` is what its training recorded."""
    choice = load_choice(run)
    known: Mapping[str, str] = {kept.sha256: kept.path for kept in kept_files(trained).values()}
    if choice is None or choice.weights_sha256 not in known or not (run.root / choice.weights).is_file():
        return ChosenAdapter(run.root / trained.weights, trained.weights_sha256, last_epoch(trained))
    return ChosenAdapter(run.root / choice.weights, choice.weights_sha256, choice.epoch, choice.weight)


def load_choice(run: RunPaths) -> Choice | None:
    """What `choose` recorded in a run; None where it did not, or another version of it did."""
    return load_result(run, "choose", Choice)
