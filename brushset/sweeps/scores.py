"""What a run of a sweep is ranked by: how much of its style it keeps, as the stage `choose` measured it.

A checkpoint and a weight are chosen on one half of the prompts and reported on the other. The best of many runs is chosen
too: so runs are ranked by the half that chose, and what is told of the best is the other half's, which nothing was chosen
by. A run within its bounds (prompt, diversity, memorisation) goes before one that breaks one. Where nothing was measured
that means something, runs are ranked by the loss on held-out images where there is one, else not at all.
"""

from __future__ import annotations

from dataclasses import dataclass

from brushset.paths import RunPaths
from brushset.records import Choice, Estimate, Trained
from brushset.stage_records import load_result

RETENTION, LOSS = "style kept", "loss on held-out images"


@dataclass(frozen=True)
class RunScore:
    """One run's. `ranked_by` is higher the better, None where it is not ranked; `reported` is what to expect of it, and
    `loss` that on held-out images, lower the better.
    """

    measure: str
    ranked_by: float | None
    reported: Estimate
    feasible: bool
    meaningful: bool
    loss: float | None = None

    @property
    def order(self) -> tuple[bool, float]:
        """What runs are sorted by, the best first with `reverse`."""
        return self.feasible, self.ranked_by if self.ranked_by is not None else float("-inf")


def read_score(run: RunPaths) -> RunScore | None:
    """A run's score; None before it is trained."""
    trained, choice = load_result(run, "train", Trained), load_result(run, "choose", Choice)
    if trained is None:
        return None
    loss = _best_loss(trained, choice)
    if choice is not None and (own := choice.picked()) is not None and own.retention.value is not None:
        reported = (
            choice.reported.retention if choice.reported else Estimate(value=None, note="no prompt was kept back")
        )
        return RunScore(RETENTION, own.retention.value, reported, choice.feasible, choice.meaningful, loss)
    if loss is not None:
        reported = Estimate(value=loss, note="of one set of noise: no interval")
        return RunScore(LOSS, -loss, reported, feasible=True, meaningful=not trained.base_random, loss=loss)
    note = "not evaluated yet" if choice is None else choice.reason
    return RunScore("", None, Estimate(value=None, note=note), feasible=True, meaningful=False)


def _best_loss(trained: Trained, choice: Choice | None) -> float | None:
    epoch = choice.epoch if choice else trained.best_epoch or trained.epochs
    losses = {point.epoch: point.loss for point in trained.validation}
    if choice:
        losses |= {point.epoch: point.held_out for point in choice.losses}
    return losses.get(epoch)
