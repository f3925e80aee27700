"""The pictures of a package: the card's preview, the header's thumbnail, and a PNG that carries a workflow."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from webui_export.verify.beside import MAX_PREVIEW_BYTES
from webui_export.verify.header import THUMBNAIL_PX

if TYPE_CHECKING:
    from PIL.Image import Image

SQUARE, PORTRAIT = (512, 512), (512, 768)
_PORTRAIT_FROM = 1.25  # height by width: nearer to 2:3 than to a square


def write_preview(picture: Path, target: Path) -> None:
    """Writes a PNG of 512 × 512, or 512 × 768 of an upright picture, cut at the centre; smaller ones are not enlarged.
    Where that would reach 1 MB, as noise does, it gets a palette of 256 colours.
    """
    image = _cut(picture)
    for colours in (0, 256, 64):
        content = _png(image.quantize(colours) if colours else image)
        if len(content) < MAX_PREVIEW_BYTES:
            break
    target.write_bytes(content)


def thumbnail(picture: Path) -> str:
    """A data URI of a JPEG of 256 × 256 pixels, some 10 kB, as ModelSpec 1.0.1 wants it."""
    from PIL import Image, ImageOps

    with Image.open(picture) as image:
        small = ImageOps.fit(image.convert("RGB"), (THUMBNAIL_PX, THUMBNAIL_PX))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def write_carrier(picture: Path, target: Path, workflow: Mapping[str, Any], prompt: Mapping[str, Any]) -> None:
    """Writes the picture as a PNG with both forms of a workflow in its text chunks, where SaveImage puts them."""
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    chunks.add_text("prompt", json.dumps(prompt))
    chunks.add_text("workflow", json.dumps(workflow))
    target.write_bytes(_png(_opened(picture), chunks))


def _cut(picture: Path) -> Image:
    from PIL import Image, ImageOps

    image = _opened(picture)
    width, height = PORTRAIT if image.height >= _PORTRAIT_FROM * image.width else SQUARE
    share = min(1.0, image.width / width, image.height / height)
    across = max(2, int(width * share) // 2 * 2)  # even, so that 2:3 is whole pixels
    return ImageOps.fit(image, (across, across * height // width), Image.Resampling.LANCZOS)


def _opened(picture: Path) -> Image:
    from PIL import Image

    with Image.open(picture) as image:
        loaded: Image.Image = image.convert("RGB")
    return loaded


def _png(image: Image, chunks: Any = None) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True, pnginfo=chunks)
    return buffer.getvalue()
