"""The runs of a sweep in the order of their scores, and what each setting did."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brushset.paths import RunPaths
from brushset.sweeps.scores import RunScore
from brushset.sweeps.space import SEED

_FEW_RUNS = 4  # of so few a run a value is told too, with the word that luck cannot be told from it


@dataclass(frozen=True)
class Ranked:
    """One run of a sweep as it came out. `state` is "finished", "failed", "waiting" …; `words` say why it is not finished."""

    run: RunPaths
    style: str
    label: str
    settings: Mapping[str, Any]
    rung: int
    state: str
    words: str
    seconds: float | None
    score: RunScore | None
    has_report: bool = False

    @property
    def value(self) -> float | None:
        """What it is ranked by, higher the better."""
        return self.score.ranked_by if self.score else None


@dataclass(frozen=True)
class Level:
    """The runs at one value of a setting: their mean, and how far they lie apart, which is everything else that varies."""

    value: Any
    runs: int
    mean: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class Effect:
    """What one setting did: a level a value, in order; `spread` is between the best and the worst level's mean, `within`
    the standard deviation of runs of the same level, pooled; None where no level has two.
    """

    key: str
    levels: tuple[Level, ...]
    spread: float
    within: float | None

    @property
    def best(self) -> Level:
        """The level of the highest mean."""
        return max(self.levels, key=lambda level: level.mean)


def rank(runs: Sequence[Ranked]) -> list[Ranked]:
    """The best first: those on higher rungs of a halving, within the bounds, by score; those without one last."""
    bare = (False, -math.inf)
    return sorted(
        runs,
        key=lambda each: (each.value is not None, each.rung, each.score.order if each.score else bare),
        reverse=True,
    )


def find_effects(runs: Sequence[Ranked], varied: Sequence[str]) -> list[Effect]:
    """Main effects of the settings over the scored runs of one rung, the largest first. A setting that took one value in
    them has none; neither has one drawn from a range, whose values are a cloud of points and no levels.
    """
    scored = [each for each in runs if each.value is not None]
    found = []
    for key in varied:
        levels: dict[Any, list[float]] = {}
        for each in scored:
            levels.setdefault(_hashable(each.settings.get(key)), []).append(float(each.value or 0.0))
        if not 2 <= len(levels) <= max(_FEW_RUNS, len(scored) // 2):
            continue
        found.append(_effect(key, levels))
    return sorted(found, key=lambda effect: -effect.spread)


def lowest_rung(runs: Sequence[Ranked]) -> list[Ranked]:
    """The runs of the lowest rung: all settings, trained equally long, so that they can be compared."""
    lowest = min((each.rung for each in runs), default=0)
    return [each for each in runs if each.rung == lowest]


def average_seeds(runs: Sequence[Ranked]) -> list[tuple[Mapping[str, Any], list[Ranked]]]:
    """The scored runs by their settings without the seed."""
    found: dict[str, tuple[Mapping[str, Any], list[Ranked]]] = {}
    for each in runs:
        if each.value is not None:
            point = {key: value for key, value in each.settings.items() if key != SEED}
            found.setdefault(f"{each.style} {point}", (point, []))[1].append(each)
    return list(found.values())


def _effect(key: str, levels: Mapping[Any, Sequence[float]]) -> Effect:
    made = [
        Level(value, len(found), statistics.fmean(found), min(found), max(found)) for value, found in levels.items()
    ]
    made.sort(key=lambda level: (isinstance(level.value, str), level.value if level.value is not None else -math.inf))
    means = [level.mean for level in made]
    freedom = sum(len(found) - 1 for found in levels.values())
    squares = sum((value - statistics.fmean(found)) ** 2 for found in levels.values() for value in found)
    within = math.sqrt(squares / freedom) if freedom else None
    return Effect(key, tuple(made), max(means) - min(means), within)


def _hashable(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
