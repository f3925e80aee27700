"""The pages' pictures: thumbnails as data URIs, the grid of cells, the best and the worst sample, copies, triggers."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from brushset.errors import BrushsetError
from brushset.files import read_json
from brushset.paths import RunPaths
from brushset.records import Captions, Cell, EvalReport, NearPair, PlaceValues, Prepared

T = TypeVar("T")

THUMBNAIL_PX = 192
TILE_PX = 128
"""Of pictures of which there are very many."""
_JPEG_QUALITY = 80
SAMPLES = 12
# A page of more pictures would no longer be one that is mailed; the rest lies in eval/images.
GRID_ROWS = 16
EXTREMES = 4
TRIGGER_ROWS = 3
# Which measure names the best and the worst sample: the trusted encoder first.
_BY_STYLE = ("style_similarity_csd", "style_similarity")
_TRIGGER_COLUMNS = {
    "base": "base", "no trigger": "adapter, no trigger", "wrong trigger": "adapter, another style's trigger",
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
class RatedImage:
    """A generated image and how alike to the references it is."""

    uri: str
    prompt: str
    seed: int
    value: float


@dataclass(frozen=True)
class Extremes:
    """Of the adapter's images those least and most like the references, and the middle one; `measure` says by what."""

    measure: str
    extractor: str
    meaningful: bool
    count: int
    worst: tuple[RatedImage, ...]
    middle: RatedImage
    best: tuple[RatedImage, ...]


@dataclass(frozen=True)
class PairRow:
    """A generated image beside the training image that it is most like."""

    pair: NearPair
    image: str
    trained: str


@dataclass(frozen=True)
class TriggerStrip:
    """The same places with and without the trigger."""

    columns: tuple[str, ...]
    rows: tuple[GridRow, ...]


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


def main_cell(evaluation: EvalReport, style: str, weight: float) -> Cell | None:
    """The adapter alone as it is judged: of the cells shown, the one of this style and no other."""
    alone = [cell for cell in evaluation.cells if cell.mix.keys() == {style}]
    return next((cell for cell in alone if cell.mix[style] == weight), alone[0] if alone else None)


def grid_rows(evaluation: EvalReport, root: Path) -> list[GridRow]:
    """The grid's first rows; images of a cell lie in the order of prompts, then seeds."""
    places = _places(evaluation)
    return [
        GridRow(prompt, seed, tuple(thumbnail(root / cell.images[index]) for cell in evaluation.cells))
        for index, (prompt, seed) in enumerate(places[:GRID_ROWS])
    ]


def load_values(run: RunPaths) -> PlaceValues | None:
    """What was measured of every place; None where evaluation kept nothing that can be read."""
    path = run.place_values
    if not path.is_file():
        return None
    try:
        return PlaceValues.model_validate(read_json(path))
    except (BrushsetError, ValidationError):
        return None


def extremes(values: PlaceValues | None, cell: Cell | None, root: Path) -> Extremes | None:
    """None where no number for each image is kept, or too few of them for a best and a worst."""
    if values is None or cell is None:
        return None
    name = next((name for name in _BY_STYLE if cell.name in _cells_of(values, name)), "")
    if not name or len(values.seeds) < 3:
        return None
    measure = values.measures[name]
    each = measure.cells[cell.name]
    order = sorted(range(len(each)), key=lambda place: each[place])
    shown = min(EXTREMES, len(order) // 2)

    def rated(place: int) -> RatedImage:
        return RatedImage(thumbnail(root / cell.images[place]), values.prompts[place], values.seeds[place], each[place])

    return Extremes(
        measure=name,
        extractor=measure.extractor,
        meaningful=measure.meaningful,
        count=len(order),
        worst=tuple(map(rated, order[:shown])),
        middle=rated(order[len(order) // 2]),
        best=tuple(map(rated, reversed(order[-shown:]))),
    )


def pair_rows(evaluation: EvalReport, root: Path) -> list[PairRow]:
    """The images most like training images, the likest first."""
    return [PairRow(pair, thumbnail(root / pair.image), thumbnail(root / pair.trained)) for pair in evaluation.nearest]


def trigger_strip(evaluation: EvalReport, main: Cell | None, root: Path) -> TriggerStrip | None:
    """None where it was not sampled without its trigger. One seed of the first prompts."""
    by_role: dict[str, Cell] = {}
    for cell in (*evaluation.cells, *evaluation.more_cells):
        by_role.setdefault(cell.role, cell)
    if main is None or "no trigger" not in by_role:
        return None
    columns: dict[str, Cell] = {title: by_role[role] for role, title in _TRIGGER_COLUMNS.items() if role in by_role}
    columns["adapter, its own trigger"] = main
    numbers = range(0, len(_places(evaluation)), len(evaluation.seeds))
    rows = tuple(
        GridRow(
            evaluation.prompts[number // len(evaluation.seeds)],
            evaluation.seeds[0],
            tuple(thumbnail(root / cell.images[number]) for cell in columns.values()),
        )
        for number in numbers[:TRIGGER_ROWS]
    )
    return TriggerStrip(tuple(columns), rows)


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of the items, evenly spaced, the first among them."""
    if len(items) <= count:
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]


def thumbnail(path: Path, side_px: int = THUMBNAIL_PX) -> str:
    """An image as a JPEG data URI of at most so many pixels; small ones as PNG, whose noise JPEG would change.

    An image that is gone gives an empty string, which the page shows as missing.
    """
    from PIL import Image

    if not path.is_file():
        return ""
    with Image.open(path) as image:
        small = image.convert("RGB")
    lossless = max(small.size) <= THUMBNAIL_PX // 2
    small.thumbnail((side_px, side_px))
    buffer = io.BytesIO()
    small.save(buffer, "PNG" if lossless else "JPEG", optimize=True, **({} if lossless else {"quality": _JPEG_QUALITY}))
    kind = "png" if lossless else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _places(evaluation: EvalReport) -> list[tuple[str, int]]:
    return [(prompt, seed) for prompt in evaluation.prompts for seed in evaluation.seeds]


def _cells_of(values: PlaceValues, measure: str) -> Mapping[str, Sequence[float]]:
    return values.measures[measure].cells if measure in values.measures else {}
