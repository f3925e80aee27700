"""Which candidate is advised: the rule, on numbers alone.

Of those within the bounds the one whose least retention has the highest lower bound leads. What cannot be told from it, the
interval of the paired difference holding 0, is as good; then the cheaper method goes first, weighted before switch before
composite, then the more even weights: a method or a slant has to earn its place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from brushset.records import Estimate, MixCandidate
from eval.mixing.shares import unevenness

COST = ("weighted", "switch", "composite")
"""Methods, the cheapest first: one UNet pass a step, one with jumps, one for each adapter."""

Difference = Callable[[str, str], Estimate]
"""(cell, other) → least retention of the first less that of the second."""


@dataclass(frozen=True)
class Contender:
    """A candidate, and the shares that its weights were made of."""

    candidate: MixCandidate
    shares: tuple[float, ...]

    @property
    def cell(self) -> str:
        return self.candidate.cell


@dataclass(frozen=True)
class Decision:
    """`leader` has the highest lower bound; `chosen` is it, or what cannot be told from it by `margin`. `within` are those
    that the bounds let through; where none was, `fallback` is true and all were looked at.
    """

    chosen: Contender
    leader: Contender
    margin: Estimate | None
    within: tuple[Contender, ...]
    fallback: bool


def decide(contenders: Sequence[Contender], difference: Difference) -> Decision | None:
    """The rule above; None where nothing is known of how much is left of the styles."""
    measured = [each for each in contenders if each.candidate.least.value is not None]
    if not measured:
        return None
    within = [each for each in measured if each.candidate.feasible]
    within = within or [each for each in measured if each.candidate.feasible is None]
    pool = within or measured
    leader = max(pool, key=_lower_bound)
    margins = {each.cell: difference(leader.cell, each.cell) for each in pool if each is not leader}
    as_good = [leader, *(each for each in pool if each is not leader and _holds_nothing(margins[each.cell]))]
    chosen = min(as_good, key=_preference)
    return Decision(chosen, leader, margins.get(chosen.cell), tuple(within), fallback=not within)


def _lower_bound(contender: Contender) -> float:
    least = contender.candidate.least
    known = least.value if least.low is None else least.low
    return -math.inf if known is None else known


def _holds_nothing(difference: Estimate) -> bool:
    """Whether 0 is in the interval; without one, nothing speaks for a difference."""
    if difference.low is None or difference.high is None:
        return True
    return difference.low <= 0 <= difference.high


def _preference(contender: Contender) -> tuple[int, float, float]:
    return COST.index(contender.candidate.method), round(unevenness(contender.shares), 6), -_lower_bound(contender)
