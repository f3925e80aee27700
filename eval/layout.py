"""Which cell plays which part: the base, the adapter alone, without its trigger, mixed. Metrics ask by part, not by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from brushset.records import Cell

RUN = "the run"
FLOOR = "references against one another"
LEAST_HELD_OUT = 4
"""Fewer held-out images than this are not held against: their mean is an accident."""


@dataclass(frozen=True)
class Layout:
    """The cells of a grid by their parts, in the grid's order. `main` is the style's cell at the weight that is judged;
    `methods` names how those mixes are composed that are no weighted sums.
    """

    style: str
    main: str
    base: str = "base"
    words: str | None = None
    no_trigger: str | None = None
    wrong_trigger: str | None = None
    alone: Mapping[str, Mapping[float, str]] = field(default_factory=dict)
    mixes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    methods: Mapping[str, str] = field(default_factory=dict)

    @property
    def own(self) -> list[str]:
        """The adapter alone, at every weight."""
        return list(self.alone.get(self.style, {}).values())

    @property
    def adapted(self) -> list[str]:
        """Every cell with this style's adapter in it."""
        return [*self.own, *filter(None, (self.no_trigger, self.wrong_trigger)), *self.mixes]

    @property
    def judged(self) -> list[str]:
        """What numbers are given of: both baselines, and every cell with this style's adapter."""
        return [self.base, *filter(None, (self.words,)), *self.adapted]

    @property
    def partners(self) -> list[str]:
        """Styles that this one is mixed with."""
        return list(dict.fromkeys(style for parts in self.mixes.values() for style in parts if style != self.style))

    @property
    def sums(self) -> dict[str, Mapping[str, float]]:
        """The mixes that are weighted sums."""
        return {name: parts for name, parts in self.mixes.items() if name not in self.methods}

    def pair(self, partner: str) -> dict[str, Mapping[str, float]]:
        """The weighted sums of this style with one other and nothing else."""
        return {name: parts for name, parts in self.sums.items() if set(parts) == {self.style, partner}}


def layout_of(cells: Iterable[Cell], style: str, weight: float) -> Layout:
    """Reads the parts off the cells' roles; `weight` is the one at which the adapter alone is judged."""
    by_role: dict[str, list[Cell]] = {}
    for cell in cells:
        by_role.setdefault(cell.role, []).append(cell)
    alone: dict[str, dict[float, str]] = {}
    for cell in by_role.get("alone", []):
        ((name, strength),) = cell.mix.items()
        alone.setdefault(name, {})[strength] = cell.name
    return Layout(
        style=style,
        main=alone[style][weight],
        base=by_role["base"][0].name,
        words=_only(by_role.get("words", [])),
        no_trigger=_only(by_role.get("no trigger", [])),
        wrong_trigger=_only(by_role.get("wrong trigger", [])),
        alone={name: dict(sorted(weights.items())) for name, weights in alone.items()},
        mixes={cell.name: cell.mix for cell in by_role.get("mix", [])},
        methods={cell.name: cell.method for cell in by_role.get("mix", []) if cell.method != "weighted"},
    )


def _only(cells: Sequence[Cell]) -> str | None:
    return cells[0].name if cells else None
