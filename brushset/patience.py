"""Which epoch is the best one, and when is it known that no better one comes?

Keras' EarlyStopping rule with restore_best_weights: training ends after `patience` validations in a row without a loss
below the best so far; the first of equal ones counts. Pure functions, which both engines use, and by which the
stage that verifies a training comes to the engine's decision by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from brushset.records import ValidationPoint


@dataclass(frozen=True)
class Choice:
    """The best epoch so far, and the epoch after which there is no more hope, or None."""

    best_epoch: int
    stop_epoch: int | None


def choose_epoch(points: Sequence[ValidationPoint], patience: int) -> Choice | None:
    """Judges the validations in order; None where there are none. A loss that is no number is never the best."""
    best: ValidationPoint | None = None
    waited = 0
    for point in sorted(points, key=lambda point: point.epoch):
        if best is None or point.loss < best.loss or not math.isfinite(best.loss):
            best, waited = point, 0
            continue
        waited += 1
        if waited >= patience:
            return Choice(best.epoch, point.epoch)
    return Choice(best.epoch, None) if best else None


def describe_stop(choice: Choice | None, points: Sequence[ValidationPoint], epochs: int) -> str:
    """Why training ended before its `epochs` were over, or an empty string."""
    if choice is None or choice.stop_epoch is None or choice.stop_epoch >= epochs:
        return ""
    losses = {point.epoch: point.loss for point in points}
    tried = sum(choice.best_epoch < epoch <= choice.stop_epoch for epoch in losses)
    return (
        f"the validation loss {losses[choice.best_epoch]:.4g} of epoch {choice.best_epoch} was not beaten in {tried} "
        f"validations: stopped after epoch {choice.stop_epoch} of {epochs}"
    )
