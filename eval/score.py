"""From images to scores: every metric on every cell, with what each number is worth."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from brushset.protocols import Emit, GridImages
from brushset.records import Score
from brushset.spec import StyleSpec
from eval import METRICS
from eval.features import MADE_UP, load_clip, load_inception
from eval.metric import Extractor, NotMeasured

FLOOR_CELL = "references against one another"


def load_extractors(spec: StyleSpec) -> dict[str, Extractor]:
    """The networks that the metrics look through, by the name that METRICS uses; made up for a smoke run."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    clip = MADE_UP if spec.smoke else spec.evaluate.clip_model
    inception = MADE_UP if spec.smoke else spec.evaluate.inception
    return {"clip": load_clip(clip, device=device), "inception": load_inception(inception, device=device)}


def score_grids(
    grids: Iterable[tuple[str, GridImages]], extractors: Mapping[str, Extractor], emit: Emit, *, total: int
) -> list[Score]:
    """Every metric on each of `total` grids; on the references' own, only those metrics that compare."""
    scores = []
    for index, (cell, grid) in enumerate(grids):
        names = [name for name, metric in METRICS.items() if metric.compares or cell != FLOOR_CELL]
        emit("progress", what="scores", done=index, total=total)
        for name in names:
            scores.append(score_cell(name, cell, grid, extractors))
            if scores[-1].value is None:
                emit("warning", text=f"{name} of {cell}: {scores[-1].note}")
    emit("progress", what="scores", done=total, total=total)
    return scores


def score_cell(name: str, cell: str, grid: GridImages, extractors: Mapping[str, Extractor]) -> Score:
    """One metric on one grid; where it cannot be measured the value is None and the note says why."""
    metric = METRICS[name]
    extractor = extractors[metric.extractor]
    value, n, note = None, len(grid.images), ""
    try:
        result = metric.measure(grid, extractor)
        value, n, note = result.value, result.n, result.note
    except (NotMeasured, RuntimeError) as error:  # torch: full memory and failed decompositions are RuntimeErrors
        note = f"not measured: {str(error).splitlines()[0]}"
    if value is not None and not math.isfinite(value):
        value, note = None, f"not measured: it came out as {value}"
    return Score(
        metric=name,
        cell=cell,
        value=value,
        n=n,
        higher_is_better=metric.higher_is_better,
        extractor=extractor.id,
        meaningful=extractor.meaningful,
        note=note,
    )
