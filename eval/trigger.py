"""What the trigger word does: how much of the style comes without it, with it, and with another style's.

    leakage = (S(no trigger) − S(base)) / (S(trigger) − S(base))            0: only the trigger calls it; 1: it does nothing
    strength = (S(trigger) − S(no trigger)) / (S(references) − S(base))     what the word adds, in the unit of retention
    wrong trigger = (S(another style's trigger) − S(base)) / (S(trigger) − S(base))

S as in eval/style_similarity.py. Neither direction is better in itself: of a style that is captioned in one way throughout,
a leakage near 1 is to be expected, and is what some want. Least sensible n: some 50 images. Reported, never gated.
"""

from __future__ import annotations

import numpy as np

from eval.intervals import Statistic, bootstrap_prompts, ratio
from eval.metric import Measurement, NotMeasured
from eval.seen import Seen
from eval.style_similarity import reference_level, similarities

_NOT_PLANNED = "[evaluate] trigger_cells = false"


def measure_leakage(seen: Seen, _: str) -> Measurement:
    """How much of the style is there without the trigger.

    Raises:
        NotMeasured: the cell was not planned, or the adapter is no nearer to the style than the base.
    """
    if seen.layout.no_trigger is None:
        raise NotMeasured(_NOT_PLANNED)
    return _share(seen, seen.layout.no_trigger)


def measure_wrong_trigger(seen: Seen, _: str) -> Measurement:
    """How much of the style is there with another style's trigger. Raises as `measure_leakage`."""
    if seen.layout.wrong_trigger is None:
        raise NotMeasured(f"no other style on this base model, or {_NOT_PLANNED}")
    return _share(seen, seen.layout.wrong_trigger)


def measure_strength(seen: Seen, _: str) -> Measurement:
    """How much retention the trigger adds. Raises as `measure_leakage`."""
    if seen.layout.no_trigger is None:
        raise NotMeasured(_NOT_PLANNED)
    layout, level = seen.layout, reference_level(seen.references())
    columns = _columns(seen, layout.main, layout.no_trigger, layout.base)

    def strength(means: np.ndarray) -> np.ndarray:
        return ratio(means[..., 0] - means[..., 1], level - means[..., 2])

    return _measured(seen, columns, strength, "the base is as alike to the references as they are to each other")


def _share(seen: Seen, cell: str | None) -> Measurement:
    columns = _columns(seen, cell, seen.layout.main, seen.layout.base)

    def share(means: np.ndarray) -> np.ndarray:
        return ratio(means[..., 0] - means[..., 2], means[..., 1] - means[..., 2])

    return _measured(seen, columns, share, "with the trigger the adapter is no nearer to the style than the base")


def _columns(seen: Seen, *cells: str | None) -> np.ndarray:
    return np.stack([similarities(seen, cell) for cell in cells], axis=1)


def _measured(seen: Seen, columns: np.ndarray, statistic: Statistic, otherwise: str) -> Measurement:
    value = float(statistic(columns.mean(axis=0)))
    if np.isnan(value):
        raise NotMeasured(otherwise)
    return Measurement(value, len(columns), bootstrap_prompts(columns, seen.prompts, statistic), seen.references_note)
