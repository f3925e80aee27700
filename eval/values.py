"""What each single image measures: the numbers that means are made of, kept as eval/values.json.

Two runs at the same prompts and seeds are compared pair by pair from them (eval/differences.py), and the best and the
worst sample are those of the highest and the lowest style similarity. Distances between sets have no value an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np

from brushset.files import sha256_json
from brushset.records import PlaceMeasure, PlaceValues, Score
from eval.cells import Place
from eval.clip_score import SCALE, prompt_cosines
from eval.look import Extractor, Pictures
from eval.memorisation import gap_rows
from eval.metric import ExtractorName, NotMeasured
from eval.seen import Seen
from eval.style_similarity import reference_level, similarities

Rows = Callable[[Seen, str], np.ndarray]
_DECIMALS = 6  # finer than what an encoder gives twice


def _clip(seen: Seen, cell: str) -> np.ndarray:
    return SCALE * prompt_cosines(seen, cell)


def _lpips(seen: Seen, cell: str) -> np.ndarray:
    return seen.of(cell)[:, 0].astype(np.float64)


# Measure → its extractor, its rows, and the metric whose scores say whether it may be told.
_MEASURES: Mapping[str, tuple[ExtractorName, Rows, str]] = {
    "clip_score": ("clip", _clip, "clip_score"),
    "style_similarity": ("clip", similarities, "style_similarity"),
    "style_similarity_csd": ("csd", similarities, "style_similarity_csd"),
    "memorisation_gap": ("dinov2", gap_rows, "memorisation_gap"),
    "lpips": ("lpips", _lpips, "lpips_ratio"),
}


def place_values(
    pictures: Pictures,
    places: Sequence[Place],
    seen: Mapping[ExtractorName, Seen],
    extractors: Mapping[ExtractorName, Extractor],
    scores: Iterable[Score],
) -> PlaceValues:
    """The measures of every judged cell. One of which no score could be had, since its encoder is missing or cannot tell
    styles apart, is left out; the scores say why.
    """
    told = {score.metric: score.meaningful for score in scores if score.value is not None}
    measures = {}
    for name, (by, rows, metric) in _MEASURES.items():
        if by not in seen or metric not in told:
            continue
        cells = dict(filter(None, (_cell(partial(rows, seen[by]), cell) for cell in pictures.layout.judged)))
        identity = extractors[by].identity
        if cells:
            measures[name] = PlaceMeasure(
                extractor=identity.id,
                weights_sha256=identity.sha256,
                meaningful=told[metric],
                level=round(reference_level(seen[by].references()), _DECIMALS) if "style" in name else None,
                cells=cells,
            )
    held_out = any(each.uses_held_out for each in seen.values())
    references = sorted(path.name for path in (pictures.held_out if held_out else pictures.trained))
    return PlaceValues(
        prompts=tuple(place.prompt for place in places),
        seeds=tuple(place.seed for place in places),
        references=sha256_json(references),
        measures=measures,
    )


def _cell(rows: Callable[[str], np.ndarray], cell: str) -> tuple[str, tuple[float, ...]] | None:
    """A cell's numbers, or None where it has none, or one that is none (a single seed has no LPIPS)."""
    try:
        found = rows(cell)
    except NotMeasured:
        return None
    if not np.isfinite(found).all():
        return None
    return cell, tuple(round(float(value), _DECIMALS) for value in found)
