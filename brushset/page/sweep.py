"""The page of a sweep: the best runs with their intervals, what each setting did, what failed; runs/sweeps/<name>/report.html."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from brushset.page.sweep_plots import plot_parallel, plot_setting
from brushset.page.template import render_page
from brushset.paths import RunPaths
from brushset.sweeps.ranking import Effect, Ranked, average_seeds, find_effects, lowest_rung
from brushset.sweeps.scores import LOSS
from brushset.sweeps.space import SEED, short_value

if TYPE_CHECKING:
    from markupsafe import Markup

TEMPLATE = "sweep.html.j2"
_FULL_TINT = 46  # per cent of colour in the best cell: text on it stays readable
_FEWEST_LINES = 2


@dataclass(frozen=True)
class SweepPage:
    """What the page tells. `runs` are the best first, `folders` theirs relative to the page; `best_command` makes the best
    run the newest of its style.
    """

    name: str
    argv: Sequence[str]
    varied: Sequence[str]
    rungs: int
    runs: Sequence[Ranked]
    folders: Mapping[RunPaths, str]
    smoke: bool
    best_command: str

    @property
    def scored(self) -> list[Ranked]:
        """The runs that are ranked."""
        return [each for each in self.runs if each.value is not None]

    @property
    def meaningful(self) -> bool:
        """Whether the scores say anything of quality."""
        return (
            not self.smoke and bool(self.scored) and all(each.score and each.score.meaningful for each in self.scored)
        )

    @property
    def measure(self) -> str:
        """What runs are ranked by; "" where none is."""
        return next((each.score.measure for each in self.scored if each.score), "")


@dataclass(frozen=True)
class HeatCell:
    """The mean over seeds at two settings; None where no run there has a score. `tint` is its share of colour in per cent."""

    value: float | None
    runs: int
    tint: int


@dataclass(frozen=True)
class HeatMap:
    """Rows and columns are the values of two settings."""

    row_key: str
    column_key: str
    columns: tuple[Any, ...]
    rows: tuple[tuple[Any, tuple[HeatCell, ...]], ...]


@dataclass(frozen=True)
class OverSeeds:
    """One point of settings, over its seeds."""

    label: str
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)


def render_sweep(page: SweepPage) -> str:
    """The page's HTML."""
    settings = [key for key in page.varied if key != SEED]
    compared = lowest_rung(page.scored)
    effects = find_effects(compared, page.varied)
    sign = -1.0 if page.measure == LOSS else 1.0
    return render_page(
        TEMPLATE,
        {
            "page": page,
            "sign": sign,
            "settings": settings,
            "failed": [each for each in page.runs if each.state in {"failed", "interrupted", "gone"}],
            "open": [each for each in page.runs if each.state not in {"failed", "interrupted", "gone", "finished"}],
            "heat": heat_map(compared, settings),
            "parallel": _parallel(compared, page.varied, page.measure, sign),
            "effects": [(each, words(each)) for each in effects],
            "plots": [plot for key in page.varied if (plot := plot_setting(key, compared, page.measure, sign))],
            "over_seeds": over_seeds(compared) if SEED in page.varied else [],
        },
    )


def sweep_json(page: SweepPage) -> dict[str, Any]:
    """The same for machines."""
    compared = lowest_rung(page.scored)
    return {
        "name": page.name,
        "argv": list(page.argv),
        "varied": list(page.varied),
        "meaningful": page.meaningful,
        "measure": page.measure,
        "best_command": page.best_command,
        "runs": [_run_json(each, page.folders[each.run]) for each in page.runs],
        "effects": [
            {
                "setting": each.key,
                "spread": each.spread,
                "within": each.within,
                "levels": [vars(level) for level in each.levels],
            }
            for each in find_effects(compared, page.varied)
        ],
    }


def heat_map(runs: Sequence[Ranked], settings: Sequence[str]) -> HeatMap | None:
    """Where exactly two settings vary, on a grid; None elsewhere."""
    if len(settings) != 2 or len({each.style for each in runs}) != 1:
        return None
    row_key, column_key = settings
    rows, columns = (_sorted_values(runs, key) for key in settings)
    if min(len(rows), len(columns)) < 2 or len(rows) * len(columns) > 2 * len(runs):
        return None
    cells: dict[tuple[str, str], list[float]] = {}
    for each in runs:
        place = str(each.settings.get(row_key)), str(each.settings.get(column_key))
        cells.setdefault(place, []).append(float(each.value or 0.0))
    means = {place: statistics.fmean(values) for place, values in cells.items()}
    low, high = min(means.values()), max(means.values())

    def cell(row: Any, column: Any) -> HeatCell:
        place = str(row), str(column)
        if place not in means:
            return HeatCell(None, 0, 0)
        share = (means[place] - low) / (high - low) if high > low else 0.5
        return HeatCell(means[place], len(cells[place]), round(_FULL_TINT * share))

    table = tuple((row, tuple(cell(row, column) for column in columns)) for row in rows)
    return HeatMap(row_key, column_key, tuple(columns), table)


def over_seeds(runs: Sequence[Ranked]) -> list[OverSeeds]:
    """The settings by their mean over seeds, the best first."""
    found = []
    for point, group in average_seeds(runs):
        words = " ".join(f"{key.rpartition('.')[2]}={short_value(value)}" for key, value in point.items())
        values = tuple(sorted(float(each.value or 0.0) for each in group))
        found.append(OverSeeds(words or group[0].style, values))
    return sorted(found, key=lambda each: -each.mean)


def words(effect: Effect) -> str:
    """What a setting did, in a sentence that says no more than was seen."""
    best = effect.best
    if effect.within is None:
        return f"best at {short_value(best.value)}; one run a value, so that luck cannot be told from it"
    if effect.spread <= effect.within:
        return f"no more than runs of one value lie apart anyway ({effect.within:.3f})"
    return f"best at {short_value(best.value)}; {effect.spread / max(effect.within, 1e-9):.1f} times what runs of one value lie apart"


def _parallel(runs: Sequence[Ranked], varied: Sequence[str], measure: str, sign: float) -> Markup | str:
    """Only where more settings vary than a map of two shows."""
    settings = [key for key in varied if key != SEED]
    if len(runs) < _FEWEST_LINES or (len(settings) < 3 and heat_map(runs, settings) is not None) or len(varied) < 2:
        return ""
    return plot_parallel(runs, varied, measure, sign)


def _sorted_values(runs: Sequence[Ranked], key: str) -> list[Any]:
    found = {str(each.settings.get(key)): each.settings.get(key) for each in runs}
    return sorted(found.values(), key=lambda value: (isinstance(value, str), value if value is not None else 0))


def _run_json(run: Ranked, folder: str) -> dict[str, Any]:
    score = run.score
    return {
        "style": run.style,
        "folder": folder,
        "settings": dict(run.settings),
        "rung": run.rung,
        "state": run.state,
        "words": run.words,
        "seconds": run.seconds,
        "ranked_by": run.value,
        "measure": score.measure if score else "",
        "reported": score.reported.model_dump(mode="json") if score else None,
        "feasible": score.feasible if score else None,
        "meaningful": score.meaningful if score else False,
        "held_out_loss": score.loss if score else None,
    }
