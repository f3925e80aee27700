"""What a metric is here: arithmetic on vectors, giving a number with its interval, or the reason why there is none.

A metric that cannot be measured says why (`NotMeasured`); it never becomes zero and never disappears.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

ExtractorName = Literal["clip", "csd", "dinov2", "inception", "lpips", "dhash"]


class NotMeasured(Exception):
    """There is no number, for the reason given."""


@dataclass(frozen=True)
class Interval:
    """A 95 % interval, and how it was made; without bounds where `method` says "none", and why."""

    low: float | None
    high: float | None
    method: str

    @classmethod
    def none(cls, why: str) -> Interval:
        """No interval."""
        return cls(None, None, f"none: {why}")

    def mapped(self, change: Callable[[float], float]) -> Interval:
        """With both bounds changed by a rising function."""
        if self.low is None or self.high is None:
            return self
        return Interval(change(self.low), change(self.high), self.method)

    def within(self, least: float, most: float) -> Interval:
        """Cut to what the number can be."""
        return self.mapped(lambda bound: min(max(bound, least), most))


@dataclass(frozen=True)
class Measurement:
    """One number over `n` generated images."""

    value: float
    n: int
    interval: Interval
    note: str = ""
