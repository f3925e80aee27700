"""The report's tables and pictures, each from the records that it shows."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from brushset.pipeline import StageRecord
from brushset.records import Captions, EvalReport, Prepared, Score

T = TypeVar("T")

THUMBNAIL_PX = 192
SAMPLES = 12
# A page of more pictures would no longer be one that is mailed; the rest lies in eval/images.
GRID_ROWS = 16
# Title and decimals of the metrics that are known; others appear under their own names.
_SHOWN = {
    "clip_score": ("CLIP score", 2), "clip_score_difference": ("CLIP score, difference to base", 2),
    "style_similarity": ("Style similarity", 3), "style_similarity_csd": ("Style similarity (CSD)", 3),
    "fid": ("FID", 2), "kid": ("KID", 4), "kd_dinov2": ("KD (DINOv2)", 3), "kd_clip": ("KD (CLIP)", 3),
    "kd_dinov2_difference": ("KD (DINOv2), difference to style words", 3), "cmmd": ("CMMD", 3),
    "memorisation_gap": ("Memorisation gap", 3), "copies": ("Copies", 2), "near_copies": ("Near copies (dHash)", 2),
    "lpips_ratio": ("Diversity to base (LPIPS)", 2), "vendi_ratio": ("Diversity to base (Vendi)", 2),
    "loss_gap": ("Loss gap", 4),
}  # fmt: skip


@dataclass(frozen=True)
class SampleImage:
    """One training image with its caption."""

    uri: str
    name: str
    size: str
    caption: str
    source: str


@dataclass(frozen=True)
class GridRow:
    """One prompt with one seed, over all cells."""

    prompt: str
    seed: int
    uris: tuple[str, ...]


@dataclass(frozen=True)
class ScoreColumn:
    """One metric."""

    title: str
    decimals: int
    higher_is_better: bool | None
    extractor: str
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class ScoreRow:
    """One cell's scores, in the order of the columns; None where a metric does not apply."""

    cell: str
    n: int
    scores: tuple[Score | None, ...]
    deltas: tuple[float | None, ...]


@dataclass(frozen=True)
class ScoreTable:
    """All scores; `missing` says why each empty place is empty."""

    columns: tuple[ScoreColumn, ...]
    rows: tuple[ScoreRow, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class StageTime:
    """How long a stage took; `share` of the longest, 0 to 1."""

    stage: str
    seconds: float
    share: float
    taken_from: str


def sample_images(prepared: Prepared, captions: Captions, folder: Path) -> list[SampleImage]:
    """Some twelve of the training images, evenly over the sorted names, which are hashes and so in no order."""
    by_image = {caption.image: caption for caption in captions.captions}
    samples = []
    for image in spread(prepared.images, SAMPLES):
        caption = by_image.get(image.name)
        samples.append(
            SampleImage(
                uri=thumbnail(folder / image.name),
                name=image.source,
                size=f"{image.width_px} × {image.height_px}",
                caption=caption.text if caption else "",
                source=caption.source if caption else "none",
            )
        )
    return samples


def grid_rows(evaluation: EvalReport, root: Path) -> list[GridRow]:
    """The grid's first rows; images of a cell lie in the order of prompts, then seeds."""
    places = [(prompt, seed) for prompt in evaluation.prompts for seed in evaluation.seeds]
    return [
        GridRow(prompt, seed, tuple(thumbnail(root / cell.images[index]) for cell in evaluation.cells))
        for index, (prompt, seed) in enumerate(places[:GRID_ROWS])
    ]


def score_table(evaluation: EvalReport) -> ScoreTable:
    """Cells down, metrics across, with the difference to the base in each cell of the grid."""
    names = list(dict.fromkeys(score.metric for score in evaluation.scores))
    found = {(score.cell, score.metric): score for score in evaluation.scores}
    sampled = {cell.name for cell in evaluation.cells}
    rows = []
    for cell in dict.fromkeys(score.cell for score in evaluation.scores):
        scores = tuple(found.get((cell, name)) for name in names)
        bases = [found.get(("base", name)) if cell in sampled else None for name in names]
        deltas = tuple(_delta(score, base) for score, base in zip(scores, bases, strict=True))
        rows.append(ScoreRow(cell, max(score.n for score in scores if score), scores, deltas))
    missing = tuple(
        f"{_SHOWN.get(score.metric, (score.metric,))[0]} of {score.cell}: {score.note}"
        for score in evaluation.scores
        if score.value is None
    )
    return ScoreTable(tuple(_column(evaluation, name) for name in names), tuple(rows), missing)


def stage_times(records: Mapping[str, StageRecord | None]) -> list[StageTime]:
    """The stages' times from their records, in order."""
    took = {name: record.ended_at - record.started_at for name, record in records.items() if record}
    longest = max([*took.values(), 1e-9])
    return [
        StageTime(name, took[name], took[name] / longest, record.taken_from)
        for name, record in records.items()
        if record
    ]


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of the items, evenly spaced, the first among them."""
    if len(items) <= count:
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]


def thumbnail(path: Path) -> str:
    """An image as a JPEG data URI of at most 192 pixels; small ones as PNG, whose noise JPEG would change.

    An image that is gone gives an empty string, which the page shows as missing.
    """
    from PIL import Image

    if not path.is_file():
        return ""
    with Image.open(path) as image:
        small = image.convert("RGB")
    lossless = max(small.size) <= THUMBNAIL_PX // 2
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    buffer = io.BytesIO()
    small.save(buffer, "PNG" if lossless else "JPEG", optimize=True, **({} if lossless else {"quality": 82}))
    kind = "png" if lossless else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _column(evaluation: EvalReport, name: str) -> ScoreColumn:
    """A metric's column, with what its notes say of the grid's own cells, each once."""
    scores = [score for score in evaluation.scores if score.metric == name]
    sampled = {cell.name for cell in evaluation.cells}
    remarks = dict.fromkeys(
        score.note for score in scores if score.note and score.cell in sampled and score.value is not None
    )
    title, decimals = _SHOWN.get(name, (name, 3))
    return ScoreColumn(title, decimals, scores[0].higher_is_better, scores[0].extractor, tuple(remarks))


def _delta(score: Score | None, base: Score | None) -> float | None:
    if score is None or base is None or score is base or score.value is None or base.value is None:
        return None
    return score.value - base.value
