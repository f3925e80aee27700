"""A style's newest trained run, and the LoRA files that it kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from brushset.chosen import ChosenAdapter, chosen_adapter, kept_files
from brushset.errors import UsageError
from brushset.files import shown
from brushset.load import load_style
from brushset.paths import RunPaths, RunsDir
from brushset.records import Trained
from brushset.spec import StyleSpec
from brushset.stage_records import load_record


@dataclass(frozen=True)
class TrainedStyle:
    """A style's newest trained run."""

    run: RunPaths
    spec: StyleSpec
    trained: Trained

    def epochs(self) -> dict[int, Path]:
        """Epoch → its file, of those kept."""
        return {epoch: self.run.root / kept.path for epoch, kept in kept_files(self.trained).items()}

    @property
    def chosen(self) -> ChosenAdapter:
        """The checkpoint and weight that were chosen, or what training ended with."""
        return chosen_adapter(self.run, self.trained)

    @property
    def weight(self) -> float:
        """The weight that was chosen, or [evaluate] weight."""
        return self.spec.evaluate.weight if self.chosen.weight is None else self.chosen.weight

    def file(self, epoch: int | None = None) -> Path:
        """The LoRA file that was chosen, or that of an epoch.

        Raises:
            UsageError: that epoch was not kept.
        """
        if epoch is None:
            return self.chosen.file
        kept = self.epochs()
        if epoch not in kept:
            there = ", ".join(map(str, kept))
            raise UsageError(
                f"{self.spec.name}@{epoch}: epoch {epoch} is not kept in {shown(self.run.root)}; there: {there}"
            )
        return kept[epoch]


def trained_style(runs: RunsDir, name: str) -> TrainedStyle:
    """The newest run of a style that has trained weights.

    Raises:
        UsageError: there is none.
    """
    newest = [run for run in (runs.latest(name), *reversed(runs.runs_of(name))) if run is not None]
    for run in newest:
        if record := load_record(run, "train"):
            return TrainedStyle(run, load_style(run.spec), Trained.model_validate(record.data))
    raise UsageError(f"{shown(runs.root / name)}: nothing is trained yet; fix: orchestrate.py --style {name}")
