"""What a metric is here: a function of one cell's images and of a feature extractor, with what a reader must know.

A metric that cannot be measured says why (`NotMeasured`); it never becomes zero and never disappears.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from brushset.protocols import GridImages

ExtractorName = Literal["clip", "inception"]


class NotMeasured(Exception):
    """There is no number, for the reason given."""


class Extractor(Protocol):
    """A network that metrics look through. `note` says how it was had, where that limits what its numbers mean."""

    @property
    def id(self) -> str: ...
    @property
    def meaningful(self) -> bool: ...
    @property
    def note(self) -> str: ...


@dataclass(frozen=True)
class Measurement:
    """One number over `n` generated images."""

    value: float
    n: int
    note: str = ""


@dataclass(frozen=True)
class Metric:
    """One row of the table. `compares` says whether it needs references: then it has a floor, that of the references
    held against themselves.
    """

    measure: Callable[[GridImages, Any], Measurement]
    extractor: ExtractorName
    higher_is_better: bool
    compares: bool
