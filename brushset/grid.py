"""A picture of pictures, with labels that can be read: columns with a heading, rows with a name at the left."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

_INK, _PAPER, _GAP_PX = "#1b1b1b", "#ffffff", 8
_MIN_TILE_PX = 128  # smaller images are shown at whole multiples, so that a label finds room
_LINE = 1.3  # line height over font size


def draw_grid(columns: Mapping[str, Sequence[Image]], *, row_labels: Sequence[str] = (), title: str = "") -> Image:
    """Draws the columns side by side, labels above and at the left. Images of one size each; RGB comes out.

    Labels are wrapped to a column's width; of a row's, what is higher than its images is left out, and … says so.
    """
    from PIL import Image as Images
    from PIL import ImageDraw, ImageFont

    first = next(image for images in columns.values() for image in images)
    zoom = max(1, -(-_MIN_TILE_PX // min(first.size)))
    tile = (first.width * zoom, first.height * zoom)
    font = ImageFont.load_default(size=max(13, min(28, tile[0] // 14)))
    measure = ImageDraw.Draw(Images.new("RGB", (1, 1)))
    headings = [_wrap(measure, label, font, tile[0]) for label in columns]
    line_px = round(_LINE * _size(font))
    names = [_fitted(_wrap(measure, label, font, tile[0]), tile[1] // line_px) for label in row_labels]
    left = _GAP_PX + (max(_width(measure, line, font) for name in names for line in name) + _GAP_PX if names else 0)
    width = left + len(columns) * (tile[0] + _GAP_PX)
    titles = _wrap(measure, title, font, width - 2 * _GAP_PX) if title else []
    headings_at = _GAP_PX + (line_px * len(titles) + _GAP_PX if titles else 0)
    top = headings_at + line_px * max(len(heading) for heading in headings) + _GAP_PX
    height = top + max(len(images) for images in columns.values()) * (tile[1] + _GAP_PX)

    grid = Images.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(grid)
    _text(draw, titles, (_GAP_PX, _GAP_PX), font)
    for row, name in enumerate(names):
        _text(draw, name, (_GAP_PX, top + row * (tile[1] + _GAP_PX)), font)
    for column, (heading, images) in enumerate(zip(headings, columns.values(), strict=True)):
        x = left + column * (tile[0] + _GAP_PX)
        _text(draw, heading, (x, headings_at), font)
        for row, image in enumerate(images):
            shown = image.convert("RGB").resize(tile, Images.Resampling.NEAREST)
            grid.paste(shown, (x, top + row * (tile[1] + _GAP_PX)))
    return grid


def _text(draw: ImageDraw, lines: Sequence[str], place: tuple[int, int], font: FreeTypeFont | ImageFont) -> None:
    x, y = place
    for line in lines:
        draw.text((x, y), line, fill=_INK, font=font)
        y += round(_LINE * _size(font))


def _wrap(draw: ImageDraw, text: str, font: FreeTypeFont | ImageFont, width_px: int) -> list[str]:
    """Breaks at spaces that may break, and inside a word only where the word alone is too wide."""
    lines = [""]
    for word in (part.replace("\u00a0", " ") for part in re.split(r"[ \t\r\n]+", text.strip())):
        candidate = f"{lines[-1]} {word}".strip()
        if _width(draw, candidate, font) <= width_px:
            lines[-1] = candidate
            continue
        lines += [""] if lines[-1] else []
        for letter in word:
            if lines[-1] and _width(draw, lines[-1] + letter, font) > width_px:
                lines.append("")
            lines[-1] += letter
    return lines


def _fitted(lines: list[str], most: int) -> list[str]:
    return lines if len(lines) <= most else [*lines[: most - 1], f"{lines[most - 1][:-1]}…"]


def _width(draw: ImageDraw, text: str, font: FreeTypeFont | ImageFont) -> int:
    return int(draw.textlength(text, font=font)) + 1


def _size(font: FreeTypeFont | ImageFont) -> float:
    return float(getattr(font, "size", 11))
