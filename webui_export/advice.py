"""What packages hold and advise: the checkpoint that was chosen, at the weight that evaluation recommends, or the user's."""

from __future__ import annotations

from brushset.chosen import chosen_adapter, kept_files, load_choice
from brushset.paths import RunPaths
from brushset.protocols import Advice
from brushset.records import Trained
from brushset.spec import StyleSpec


def find_advice(spec: StyleSpec, run: RunPaths, trained: Trained) -> Advice:
    """Of a run, by its record of `choose`; where that says nothing of this training, the file it ended with."""
    chosen, choice = chosen_adapter(run, trained), load_choice(run)
    if choice is not None and choice.weights_sha256 != chosen.sha256:  # of an earlier training
        choice = None
    recommended = spec.evaluate.weight if chosen.weight is None else chosen.weight
    return Advice(
        weight=spec.export.weight or recommended,
        epoch=chosen.epoch,
        steps=_steps(trained, chosen.epoch),
        sha256=chosen.sha256,
        reason=_reason(spec, recommended, choice.reason if choice else ""),
        choice=choice,
    )


def path_in_run(trained: Trained, advice: Advice) -> str:
    """Where the chosen checkpoint lies."""
    return kept_files(trained)[advice.epoch].path


def _steps(trained: Trained, epoch: int) -> int:
    """How many it was trained for; where the file that training ended with has no checkpoint's record, all."""
    return next((point.step for point in trained.checkpoints if point.epoch == epoch), trained.steps)


def _reason(spec: StyleSpec, recommended: float, reason: str) -> str:
    weight = spec.export.weight
    if weight is None or weight == recommended:
        return reason
    return f"Weight {weight:g} is [export] weight, set by hand; evaluation recommends {recommended:g}. {reason}".strip()
