"""What every method of composing is: a function (mix, options) → Course, what it may be told, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from brushset.lora.compose.progress import Schedule
from brushset.lora.compose.view import Course, Mix
from brushset.lora.merge.weights import Weight, normalised

EQUAL, BY_WEIGHT = "equal", "weights"
SHARES = (EQUAL, BY_WEIGHT)
SWITCH_EVERY = 5
"""Steps that an adapter is on for; what the paper's code uses."""


@dataclass(frozen=True)
class Options:
    """What a method may be told; each takes the ones that its row of METHODS names.

    `every`: steps that Switch leaves an adapter on for. `schedules`: adapter → its weight over the steps, where that is
    not the mix's. `normalised`: the weights of every step are scaled to sum to 1. `shares`: of Composite, see there.
    """

    every: int = SWITCH_EVERY
    schedules: Mapping[str, Schedule] = field(default_factory=dict)
    normalised: bool = False
    shares: str = EQUAL

    def told(self) -> list[str]:
        """Names of those that differ from their default."""
        return [name for name, default in vars(Options()).items() if getattr(self, name) != default]


@dataclass(frozen=True)
class Method:
    """`takes`: fields of Options. `alone`: adapters act one at a time, so that one of weight 0 would leave the base model by
    itself there.
    """

    course: Callable[[Mix, Options], Course]
    takes: tuple[str, ...]
    alone: bool


def scaled(mix: Mix, *, to_one: bool) -> tuple[tuple[str, Weight], ...]:
    """The mix, scaled to weights of sum 1 where that is asked for.

    Raises:
        UsageError: they sum to nothing, or less.
    """
    if not to_one:
        return tuple(mix)
    weights = normalised([weight for _, weight in mix])
    return tuple((name, weight) for (name, _), weight in zip(mix, weights, strict=True))


def effective_weights(course: Course, steps: int) -> dict[str, float]:
    """Adapter → the mean over all steps of share × weight: how strong it is over the whole image, to first order.

    Their sum is the total strength. At 0.6 and 0.4 it is 1 with weighted, 0.5 with switch and composite, since an
    adapter is on in half of the steps, or has half of the say.
    """
    sums: dict[str, list[float]] = {}
    for step in range(steps):
        for view in course(step, steps):
            for name, weight in view.mix:
                sums.setdefault(name, []).append(view.share * weight.whole)
    return {name: math.fsum(found) / steps for name, found in sums.items()}


def names_of(mix: Sequence[tuple[str, object]]) -> str:
    """The adapters, for messages."""
    return ", ".join(name for name, _ in mix)
