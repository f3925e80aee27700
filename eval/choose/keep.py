"""What is kept of the images: some of every candidate, small, for the report; and a sheet of epochs × weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from brushset.generator import create_comparison_grid
from eval.cells import BASE_CELL, Place, PlannedCell
from eval.choose.candidates import Way
from eval.choose.studio import Studio
from eval.preprocess import open_rgb
from eval.sample import tile

if TYPE_CHECKING:
    from PIL.Image import Image

_SAMPLE_PX = 384
_QUALITY = 90
_MISSING = "#d9d9d9"


def keep_samples(studio: Studio, cell: PlannedCell, places: Sequence[Place], name: str) -> tuple[str, ...]:
    """Writes images/<name>/<prompt>_<seed>.jpg below the stage's folder, 30 KB each; returns the paths in the run. None
    where not all were made.
    """
    files = [studio.file(cell, place) for place in places]
    if not all(file.is_file() for file in files):
        return ()
    folder = studio.context.workdir / "images" / name
    folder.mkdir(parents=True, exist_ok=True)
    kept = []
    for file in files:
        small = open_rgb(file)
        small.thumbnail((_SAMPLE_PX, _SAMPLE_PX))
        small.save(folder / f"{file.stem}.jpg", quality=_QUALITY, subsampling=0)
        kept.append(f"choice/images/{name}/{file.stem}.jpg")
    return tuple(kept)


def draw_sheet(studio: Studio, ways: Sequence[Way], place: Place) -> Image:
    """A row an epoch, a column a weight, the base at the left: all of one prompt and seed. What was not tried is grey."""
    from PIL import Image as Pictures

    epochs, weights = sorted({way.epoch for way in ways}), sorted({way.weight for way in ways})
    base = tile(studio.file(BASE_CELL, place))

    def shown(way: Way) -> Image:
        file = studio.file(studio.cell(way), place)
        return tile(file) if way in ways and file.is_file() else Pictures.new("RGB", base.size, _MISSING)

    columns = {"base": [base] * len(epochs)}
    columns |= {f"weight {weight:g}": [shown(Way(epoch, weight)) for epoch in epochs] for weight in weights}
    return create_comparison_grid(
        columns, row_labels=[f"epoch {epoch}" for epoch in epochs], title=f"{place.prompt} (seed {place.seed})"
    )
