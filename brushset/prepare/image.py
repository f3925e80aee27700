"""One image of the user's becomes one file that the trainer sees as it is: scaled here, once, to cover its bucket.

A trainer scales each image to its bucket anyway; done here, it is done by Lanczos, once and not at every start, and a
2000×2000 original slows nothing down later. sd-scripts finds nothing left to scale (see brushset.buckets.settle) and
cuts at the centre, unless [dataset] crop has cut already.
"""

from __future__ import annotations

import hashlib
import io
import math
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from brushset.buckets import BucketRules, Placement, Size, settle
from brushset.errors import InputError
from brushset.files import shown, write_atomic
from brushset.images import decode_image
from brushset.paths import RunPaths
from brushset.prepare.crop import crop_to_bucket
from brushset.records import AuditedImage, PreparedImage
from brushset.spec import DatasetSection

NAME_DIGITS = 16
_JPEG_QUALITY = 95
# zlib's run-length strategy. 40 watercolors at 512 px: 20 ms each and 452 kB, where Pillow's default takes 71 ms for
# 448 kB, compress_level=1 24 ms for 491 kB.
_PNG_STRATEGY = 3
# A JPEG may be decoded at a fraction of its size, but to no less than this times what is wanted: Lanczos does the rest.
_DRAFT_MARGIN = 1.5
# Decoding and compositing take 14 bytes a pixel: 890 MB at 64 megapixels, 3.3 GB where four threads do so at once.
# Larger images than this take turns.
_LARGE_PX = 16_000_000

# Within images/, and so a part of a prepared image's name.
_HELDOUT = RunPaths(Path()).heldout.name

Enlarge = Callable[[Image.Image, Size], Image.Image]


@dataclass(frozen=True)
class Recipe:
    """How the images of one style are prepared. `target` stands for the run's images/; `enlarge` brings a smaller image
    to a size; `turn` is held while a very large one is decoded.
    """

    folder: Path
    target: Path
    dataset: DatasetSection
    rules: BucketRules
    enlarge: Enlarge
    turn: threading.Lock = field(default_factory=threading.Lock)


def enlarge_by_lanczos(image: Image.Image, size: Size) -> Image.Image:
    """`image` at `size`."""
    return image.resize(size, Image.Resampling.LANCZOS)


def prepared_name(image: AuditedImage, dataset: DatasetSection, *, held_out: bool) -> str:
    """The file below images/: from the hash of the source's bytes, so that `a.jpg` and `a.png` share neither a caption
    nor a latent cache, byte-equal copies fall together, and quotes or newlines in a name go no further.
    """
    name = image.sha256[:NAME_DIGITS] + (".png" if dataset.format == "png" else ".jpg")
    return f"{_HELDOUT}/{name}" if held_out else name


def prepare_image(recipe: Recipe, image: AuditedImage, *, held_out: bool) -> PreparedImage:
    """Writes one audited image into the recipe's target.

    Raises:
        InputError: the file is no longer the one that was audited.
    """
    source, dataset = recipe.folder / image.path, recipe.dataset
    content = source.read_bytes() if source.is_file() else b""
    if hashlib.sha256(content).hexdigest() != image.sha256:
        raise InputError(f"{shown(source)}: changed while the run was at work; fix: start the command again")
    place = settle((image.width_px, image.height_px), recipe.rules)
    with recipe.turn if image.width_px * image.height_px > _LARGE_PX else nullcontext():
        rgb = _decoded_and_scaled(recipe, source, content, place)
    rgb = crop_to_bucket(rgb, place, dataset.crop)
    name = prepared_name(image, dataset, held_out=held_out)
    write_atomic(recipe.target / name, _encoded(rgb, dataset.format))
    factor = max(place.resized[0] / image.width_px, place.resized[1] / image.height_px)
    return PreparedImage(
        name=name, source=image.path, source_sha256=image.sha256, width_px=rgb.width, height_px=rgb.height,
        upscaled_by=round(max(1.0, factor), 4),
    )  # fmt: skip


def _decoded_and_scaled(recipe: Recipe, source: Path, content: bytes, place: Placement) -> Image.Image:
    dataset = recipe.dataset
    draft = _Draft(math.ceil(_DRAFT_MARGIN * min(place.resized)))
    rgb = decode_image(io.BytesIO(content), source, dataset.background, dataset.max_megapixels, draft).rgb
    if rgb.size == place.resized:
        return rgb
    if rgb.width < place.resized[0] or rgb.height < place.resized[1]:
        return recipe.enlarge(rgb, place.resized)
    return rgb.resize(place.resized, Image.Resampling.LANCZOS)


@dataclass(frozen=True)
class _Draft:
    """Has a JPEG decoded to a half, a quarter or an eighth, its shorter side no smaller than `least_side_px`."""

    least_side_px: int

    def before_decoding(self, image: Image.Image) -> None:
        share = self.least_side_px / min(image.size)
        if share < 1:
            image.draft(None, (math.ceil(image.width * share), math.ceil(image.height * share)))

    def after_decoding(self, image: Image.Image) -> Image.Image:
        return image


def _encoded(rgb: Image.Image, kind: str) -> bytes:
    content = io.BytesIO()
    if kind == "png":
        rgb.save(content, "PNG", compress_type=_PNG_STRATEGY)
    else:
        rgb.save(content, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return content.getvalue()
