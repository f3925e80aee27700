"""Which picture stands for the style: of the chosen adapter alone the one most like the style, of those that show what
their prompts say as well as most do. Numbers that mean nothing choose nothing: then the first place of the grid.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from brushset.page.pictures import load_values
from brushset.paths import RunPaths
from brushset.records import Cell, EvalReport, PlaceMeasure, PlaceValues

_STYLE = ("style_similarity_csd", "style_similarity")
_PROMPT = "clip_score"


def alone_cell(report: EvalReport, style: str) -> Cell | None:
    """The adapter alone at the weight that is judged: the first that is shown."""
    return next((cell for cell in report.cells if list(cell.mix) == [style] and cell.images), None)


def ordered_samples(run: RunPaths, report: EvalReport, style: str) -> list[int]:
    """Places of the adapter's cell, the best first, then the first of every prompt in the grid's order."""
    cell = alone_cell(report, style)
    if cell is None:
        return []
    seeds = max(1, len(report.seeds))
    best = best_place(load_values(run), cell)
    return list(dict.fromkeys([best, *range(0, len(cell.images), seeds), *range(len(cell.images))]))


def best_place(values: PlaceValues | None, cell: Cell) -> int:
    """The index of the image of highest style similarity, of those whose CLIP score is not below the median; the first of
    equals, and the first of all where either was not measured by a real network.
    """
    if values is None:
        return 0
    style = next((found for name in _STYLE if (found := _of(values.measures.get(name), cell))), None)
    prompt = _of(values.measures.get(_PROMPT), cell)
    if style is None or prompt is None:
        return 0
    middle = statistics.median(prompt)
    fit = [place for place, score in enumerate(prompt) if score >= middle]
    return max(fit, key=lambda place: (style[place], -place))


def _of(measure: PlaceMeasure | None, cell: Cell) -> Sequence[float] | None:
    if measure is None or not measure.meaningful:
        return None
    found = measure.cells.get(cell.name, ())
    return found if len(found) == len(cell.images) else None
