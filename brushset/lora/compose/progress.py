"""An adapter's weight over the steps, and how it is typed.

    0.8@0-0.5               0.8 in the first half of the steps, 0 after it
    0→0.8                   a ramp over all steps; also 0~0.8 and '0->0.8', for keyboards and shells
    0→0.8@0.5-1             a ramp over the second half, 0 before it
    0@0→0.8@0.3→0.4@1       points: weight@progress, straight lines between; the same progress twice is a jump
    0.8,text=0.4@0-0.5      weights by part as everywhere (merge/weights.py)

Progress is 0 at the first step and 1 at the last. A part holds its beginning and not its end, but for the last step, so
that 0-0.5 and 0.5-1 share all steps among them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from brushset.errors import UsageError
from brushset.lora.merge.weights import Weight, parse_weight

_ARROW = re.compile(r"\s*(?:→|->|~)\s*")
_OFF = Weight(0.0)


@dataclass(frozen=True)
class Schedule:
    """Progress and weight, progress rising; straight lines between, held before the first and after the last. Where two
    follow at one progress, the second holds there.
    """

    points: tuple[tuple[float, Weight], ...]

    @classmethod
    def always(cls, weight: Weight) -> Schedule:
        return cls(((0.0, weight),))

    def at(self, progress: float) -> Weight:
        """The weight there."""
        later = next((index for index, (at, _) in enumerate(self.points) if at > progress), len(self.points))
        if later in (0, len(self.points)):
            return self.points[min(later, len(self.points) - 1)][1]
        (left, first), (right, second) = self.points[later - 1], self.points[later]
        return first.towards(second, (progress - left) / (right - left))

    def jumps(self, after: float, until: float) -> bool:
        """Whether the weight jumps in (after, until]."""
        pairs = zip(self.points, self.points[1:], strict=False)
        return any(left[0] == right[0] and left[1] != right[1] and after < left[0] <= until for left, right in pairs)

    @property
    def constant(self) -> Weight | None:
        """The weight, where it is the same throughout."""
        return self.points[0][1] if len({repr(weight) for _, weight in self.points}) == 1 else None

    @property
    def nothing(self) -> bool:
        """Whether it is 0 throughout."""
        return all(weight.nothing for _, weight in self.points)

    @property
    def peak(self) -> Weight:
        """The weight that is largest in magnitude."""
        return max((weight for _, weight in self.points), key=lambda weight: abs(weight.whole))

    def told(self) -> str:
        """As it can be typed."""
        if self.constant is not None:
            return self.constant.told()
        return "→".join(f"{weight.told()}@{progress:g}" for progress, weight in self.points)


def parse_schedule(text: str, source: str) -> Schedule:
    """Reads what stands after the adapter's colon; `source` is what the user typed.

    Raises:
        UsageError: a weight that is none, a part or points that are not between 0 and 1 or do not rise.
    """
    items = _ARROW.split(text.strip())
    if any("@" in item for item in items[:-1]):
        return Schedule(tuple(_rising([_point(item, source) for item in items], source)))
    last, at, part = items[-1].partition("@")
    weights = [parse_weight(item.strip(), source) for item in [*items[:-1], last]]
    if not at and len(weights) == 1:
        return Schedule.always(weights[0])
    start, end = _part(part, source) if at else (0.0, 1.0)
    gap = (end - start) / max(1, len(weights) - 1)
    points = [(start + index * gap, weight) for index, weight in enumerate(weights[:-1])] + [(end, weights[-1])]
    if len(weights) == 1:
        points = [(start, weights[0]), (end, weights[0])]
    before = [(start, _OFF)] if start > 0 else []
    after = [(end, _OFF)] if end < 1 else []
    return Schedule((*before, *points, *after))


def _part(text: str, source: str) -> tuple[float, float]:
    start, dash, end = text.partition("-")
    if not dash:
        raise UsageError(
            f"{source}: @{text}: a part of the steps is expected, FROM-TO between 0 and 1, such as 0.8@0-0.5"
        )
    part = _progress(start, source), _progress(end, source)
    if part[0] >= part[1]:
        raise UsageError(f"{source}: @{text}: holds no step; FROM must be below TO, such as 0.8@0-0.5")
    return part


def _point(text: str, source: str) -> tuple[float, Weight]:
    weight, at, progress = text.partition("@")
    if not at or "-" in progress:
        raise UsageError(
            f"{source}: {text}: with points each weight has its own @PROGRESS, such as 0@0→0.8@0.3→0.4@1; "
            "a part, as in 0→0.8@0.5-1, stands once, at the end"
        )
    return _progress(progress, source), parse_weight(weight.strip(), source)


def _rising(points: list[tuple[float, Weight]], source: str) -> Iterator[tuple[float, Weight]]:
    latest = 0.0
    for progress, weight in points:
        if progress < latest:
            raise UsageError(f"{source}: @{progress:g} comes after @{latest:g}; points must rise from 0 to 1")
        latest = progress
        yield progress, weight


def _progress(text: str, source: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise UsageError(
            f"{source}: @{text.strip()}: progress is a number from 0, the first step, to 1, the last; 0.5 is half-way"
        )
    return value
