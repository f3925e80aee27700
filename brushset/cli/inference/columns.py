"""Which mixes of the adapters are drawn: the one that was named, each alone, or the columns of a grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from brushset.cli.inference.adapters import Adapter
from brushset.cli.inference.findings import collecting, refuse
from brushset.errors import UsageError

SINGLE_WEIGHTS = (0.4, 0.6, 0.8, 1.0)  # where a style appears, and where it overpowers the prompt
PAIR_WEIGHTS = ((0.3, 0.7), (0.5, 0.5), (0.7, 0.3))  # sum 1: as strong as one adapter at its full weight
_MAX_WEIGHT = 10.0


@dataclass(frozen=True)
class Column:
    """One mix: adapters with a weight as it is typed. None at all is the base model."""

    mix: tuple[tuple[str, str], ...]

    @property
    def label(self) -> str:
        """`base`, `anime 0.6 + watercolor 0.4`."""
        return " + ".join(f"{name} {weight}" for name, weight in self.mix) or "base"


def plain_columns(adapters: Sequence[Adapter], *, each: bool) -> list[Column]:
    """Without a grid: the mix, or every adapter by itself."""
    weighed = tuple((adapter.name, adapter.weight or "1") for adapter in adapters)
    return [Column((part,)) for part in weighed] if each else [Column(weighed)]


def grid_columns(adapters: Sequence[Adapter], weights: Sequence[str], *, each: bool) -> list[Column]:
    """The base first, then one adapter or a pair at several weights; of three and more, each alone and the mix. A weight
    that was typed behind an adapter's name makes a column too.

    Raises:
        UsageError: weights that are none, or not one for each adapter.
    """
    given = plain_columns(adapters, each=each)
    named = given if any(adapter.weight is not None for adapter in adapters) else []
    if weights:
        swept = _swept(adapters, weights, each=each)
    elif len(adapters) == 1:
        swept = [Column(((adapters[0].name, f"{weight:g}"),)) for weight in SINGLE_WEIGHTS]
    elif each:
        swept, named = given, []
    elif len(adapters) == 2:
        swept = [_at(adapters, pair) for pair in PAIR_WEIGHTS]
    else:
        swept, named = [*plain_columns(adapters, each=True), *given], []
    return list(dict.fromkeys([Column(()), *swept, *named]))


def _swept(adapters: Sequence[Adapter], weights: Sequence[str], *, each: bool) -> list[Column]:
    columns: list[Column] = []
    findings: list[str] = []
    for text in weights:
        with collecting(findings):
            numbers = [_number(part, text) for part in text.split("/")]
            columns += _columns_at(adapters, numbers, text, each=each)
    refuse(findings)
    return columns


def _columns_at(adapters: Sequence[Adapter], numbers: Sequence[float], text: str, *, each: bool) -> list[Column]:
    if len(numbers) == 1 and (each or len(adapters) == 1):
        return [_at([adapter], numbers) for adapter in adapters]
    if len(numbers) != len(adapters) or each:
        names = "/".join(adapter.name for adapter in adapters)
        example = "/".join(["0.5"] * len(adapters))
        wanted = "one weight, with --each" if each else f"one weight for each of {names}, such as {example}"
        raise UsageError(f"--weights {text}: {wanted}, is expected")
    return [_at(adapters, numbers)]


def _at(adapters: Sequence[Adapter], numbers: Sequence[float]) -> Column:
    """The adapters at these weights; one at 0 is left out."""
    return Column(
        tuple((adapter.name, f"{number:g}") for adapter, number in zip(adapters, numbers, strict=True) if number)
    )


def _number(part: str, text: str) -> float:
    try:
        value = float(part)
    except ValueError:
        value = math.nan
    if not abs(value) <= _MAX_WEIGHT:
        raise UsageError(f"--weights {text}: numbers are expected, such as 0.4 0.6 0.8, or 0.3/0.7 for two adapters")
    return value
