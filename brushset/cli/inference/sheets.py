"""Grids of a size that viewers open: many columns go on below, many rows on another sheet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from brushset.grid import draw_grid

if TYPE_CHECKING:
    from PIL.Image import Image

COLUMNS = 6  # beside one another; six of 512 px are as wide as a large screen shows at all
TILE_PX = 512  # larger images are shown at this: they lie beside the grid as they are
SHEET_PX = 8192  # height; beyond, browsers and viewers scale or refuse


def draw_sheets(headings: Sequence[str], names: Sequence[str], table: Sequence[Sequence[Image]]) -> Iterator[Image]:
    """Sheets of `table[row][column]` with headings above the columns and names beside the rows."""
    shown = [[_tile(image) for image in row] for row in table]
    bands = -(-len(headings) // COLUMNS)
    width = -(-len(headings) // bands)  # bands of like width, rather than a last one of a single column
    rows = max(1, SHEET_PX // (bands * (shown[0][0].height + 80)))
    for first in range(0, len(shown), rows):
        part = shown[first : first + rows]
        drawn = [
            draw_grid(
                {
                    heading: [row[at + offset] for row in part]
                    for offset, heading in enumerate(headings[at : at + width])
                },
                row_labels=names[first : first + rows],
            )
            for at in range(0, len(headings), width)
        ]
        yield _below_one_another(drawn)


def _tile(image: Image) -> Image:
    if max(image.size) <= TILE_PX:
        return image
    copy = image.copy()
    copy.thumbnail((TILE_PX, TILE_PX))
    return copy


def _below_one_another(parts: Sequence[Image]) -> Image:
    from PIL import Image as Images

    sheet = Images.new("RGB", (max(part.width for part in parts), sum(part.height for part in parts)), "#ffffff")
    y = 0
    for part in parts:
        sheet.paste(part, (0, y))
        y += part.height
    return sheet
