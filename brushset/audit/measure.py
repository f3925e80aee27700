"""Everything that is measured of one image, from one read of its bytes and one decode.

All checks work on a picture brought to the area of NORMAL_PX², so that copies of it at other sizes measure alike
(sharpness within a third, hashes within 2 bits, from 37 % to 220 % of the size); a smaller one is not enlarged. JPEG
is decoded at the fraction that still covers that size (libjpeg reads the whole file for it, so a truncated one is
still found), other formats are box-reduced before their colours are converted. Cost: bench/audit.py.

Nothing here imports the spec: a process that only measures starts in a fraction of a second.
"""

from __future__ import annotations

import hashlib
import io
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from PIL import Image

from brushset.files import sha256_file
from brushset.images import UNREADABLE, decode_image
from brushset.refusal import UnusableImage

if TYPE_CHECKING:
    import numpy as np

    Luma = np.ndarray[Any, np.dtype[np.uint8]]

NORMAL_PX = 256
THUMBNAIL_PX = 160
# A file above this is not read into memory; 64 megapixels of uncompressed 16-bit RGBA take half of it.
MOST_BYTES = 1 << 30

_ORIENTATION_TAG = 0x0112
_THUMBNAIL_QUALITY = 80
_REDUCIBLE_MODES = frozenset({"L", "RGB", "RGBA"})
# Of 255: paper grain, JPEG noise and a scanner's uneven light stay below it.
_PLAIN_RANGE = 12
_UNIFORM_RANGE = 6
# Share of the line where a margin ends that must differ from the margin for the edge to be a straight one: figures and
# vignettes have 0.24 and less (95 % of four sets), the same sets' pictures between black bars 0.6 and more (90 %).
_STRAIGHT_SHARE = 0.5
_LEAST_MARGIN = 0.01
# libjpeg's luminance table at quality 50 (jcparam.c of the Independent JPEG Group), row by row as Pillow gives it.
# fmt: off
_LUMA_TABLE = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55,
    14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
)
# fmt: on

Margins = tuple[int, int, int, int]


class Measured(NamedTuple):
    """What one file is. Where it cannot be read, `error` and `fix` say why, and what follows them has no meaning.

    `measures` are the fields of brushset.records.Measures; a tuple of plain values crosses processes quickly.
    """

    sha256: str
    size_bytes: int
    error: str = ""
    fix: str = ""
    format: str = ""
    mode: str = ""
    width_px: int = 0
    height_px: int = 0
    conversions: tuple[str, ...] = ()
    guesses: tuple[str, ...] = ()
    phash: str = ""
    measures: dict[str, Any] | None = None
    thumbnail: bytes = b""


@dataclass(frozen=True)
class MeasureLimits:
    """What decoding goes by; `thumbnail` asks for one."""

    background: str
    max_megapixels: float
    thumbnail: bool = False


def measure_image(path: Path, limits: MeasureLimits) -> Measured:
    """Reads, hashes, decodes and measures one file. Raises nothing on a bad one: that is in the result."""
    try:
        size_bytes = path.stat().st_size
        if size_bytes > MOST_BYTES:
            reason = f"{size_bytes / 1e9:.1f} GB, above the {MOST_BYTES / 1e9:.1f} GB that are read"
            return Measured(sha256_file(path), size_bytes, reason, "save it as PNG or JPEG, or remove it")
        content = path.read_bytes()
    except OSError as error:
        return Measured(UNREADABLE, 0, f"cannot be read: {error.strerror}", "its permissions, or remove it")
    sha256 = hashlib.sha256(content).hexdigest()
    look = _FirstLook()
    try:
        opened = decode_image(io.BytesIO(content), path, limits.background, limits.max_megapixels, look)
    except UnusableImage as error:
        return Measured(sha256, len(content), error.reason, error.fix)
    rgb = _reduced(opened.rgb)
    luma = normal_luma(rgb)
    uniform = is_uniform(rgb)
    margin, share = find_margins(luma)
    return Measured(
        sha256, len(content), "", "", opened.format, opened.mode, *look.shown_size, opened.conversions, opened.guesses,
        phash="" if uniform else perceptual_hash(luma),
        measures={
            "orientation": look.orientation,
            "alpha_share": round(look.alpha_share, 4),
            "sharpness": round(sharpness(_inside(luma, share)), 1),
            **tones(luma),
            "margin": "none" if uniform else margin,
            "margins_px": (0,) * 4 if uniform else _in_pixels(share, look.shown_size),
            "uniform": uniform,
            "jpeg_quality": look.jpeg_quality,
        },
        thumbnail=make_thumbnail(rgb) if limits.thumbnail else b"",
    )  # fmt: skip


@dataclass
class _FirstLook:
    """Notes what only the file as it lies can tell, and makes the picture no larger than the checks need."""

    shown_size: tuple[int, int] = (0, 0)
    orientation: int = 1
    jpeg_quality: int | None = None
    alpha_share: float = 0.0
    _factor: float = field(default=1.0, repr=False)

    def before_decoding(self, image: Image.Image) -> None:
        self.shown_size = image.size
        self._factor = math.sqrt(image.width * image.height) / NORMAL_PX
        if image.format in {"JPEG", "MPO"}:
            self.jpeg_quality = jpeg_quality(getattr(image, "quantization", {}))
            if self._factor >= 2:
                image.draft(None, (int(image.width / self._factor), int(image.height / self._factor)))

    def after_decoding(self, image: Image.Image) -> Image.Image:
        # Not before: for a PNG's EXIF Pillow decodes the file, and one that failed once passes the second time.
        self.orientation = _orientation(image)
        if self.orientation >= 5:
            self.shown_size = self.shown_size[::-1]
        self.alpha_share = _alpha_share(image)
        plain = image.mode in _REDUCIBLE_MODES and "transparency" not in image.info
        return _reduced(image) if plain and self.orientation == 1 else image


def normal_luma(rgb: Image.Image) -> Luma:
    """Luma (ITU-R 601), uint8 [H, W], of an area of NORMAL_PX² at most."""
    import numpy as np

    luma = rgb.convert("L")
    factor = NORMAL_PX / math.sqrt(luma.width * luma.height)
    if factor < 1:
        size = (max(1, round(luma.width * factor)), max(1, round(luma.height * factor)))
        luma = luma.resize(size, Image.Resampling.LANCZOS)
    return np.asarray(luma)


def sharpness(luma: Luma) -> float:
    """Variance of the 4-neighbour Laplacian of luma 0-255; 0 is flat. It says how hard the edges are, and so differs
    between media: compare within one set.

    Source: Pech-Pacheco et al., Diatom autofocusing in brightfield microscopy, ICPR 2000.
    """
    import numpy as np

    if min(luma.shape) < 3:
        return 0.0
    wide = luma.astype(np.int16)
    laplacian = wide[:-2, 1:-1] + wide[2:, 1:-1] + wide[1:-1, :-2] + wide[1:-1, 2:] - 4 * wide[1:-1, 1:-1]
    return float(laplacian.var(dtype=np.float32))


def tones(luma: Luma) -> dict[str, float]:
    """Exposure, as the fields of Measures: mean, contrast, and the shares at both ends."""
    import numpy as np

    counts = np.bincount(luma.ravel(), minlength=256)
    reached = np.cumsum(counts) / luma.size
    dark, light = np.searchsorted(reached, (0.01, 0.99))
    return {
        "mean_luma": round(float(luma.mean()) / 255, 4),
        "contrast": round(float(light - dark) / 255, 4),
        "black_share": round(float(counts[:3].sum()) / luma.size, 4),
        "white_share": round(float(counts[253:].sum()) / luma.size, 4),
    }


def is_uniform(rgb: Image.Image) -> bool:
    """Whether all but a two-thousandth of the pixels have one colour: a blank page, a failed download."""
    import numpy as np

    counts = np.array(rgb.histogram()).reshape(3, 256)
    reached = np.cumsum(counts, axis=1) / counts.sum(axis=1, keepdims=True)
    dark = (reached < 0.00025).sum(axis=1)
    light = (reached < 0.99975).sum(axis=1)
    return bool((light - dark <= _UNIFORM_RANGE).all())


def perceptual_hash(luma: Luma) -> str:
    """64-bit pHash (DCT of 32×32, 8×8 lowest frequencies against their median) as 16 hex digits, by imagehash."""
    import imagehash

    return str(imagehash.phash(Image.fromarray(luma)))


def find_margins(luma: Luma) -> tuple[Literal["none", "ground", "frame"], tuple[float, float, float, float]]:
    """Plain margins of one colour, as shares of the width and height (left, top, right, bottom), and their kind.

    A frame ends at a straight line on every side that has a margin: letterbox bars, a screenshot, a scanned mount.
    Ground is what is left on three sides or four of a figure or a vignette: white paper, a flat colour.
    """
    import numpy as np

    height, width = luma.shape
    plain = int(np.median(np.concatenate([luma[0], luma[-1], luma[:, 0], luma[:, -1]])))
    drawn = np.abs(luma.astype(np.int16) - plain) > _PLAIN_RANGE
    # A speck of dust is no drawing: a line counts once two hundredths of it, or three pixels, are not plain.
    rows = np.flatnonzero(drawn.sum(axis=1) > max(2, 0.02 * width))
    columns = np.flatnonzero(drawn.sum(axis=0) > max(2, 0.02 * height))
    if not len(rows) or not len(columns):
        return "none", (0.0, 0.0, 0.0, 0.0)
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    share = (left / width, top / height, 1 - right / width, 1 - bottom / height)
    edges = _edge_lines(drawn[top:bottom, left:right])
    straight = [edge for edge, size in zip(edges, share, strict=True) if size >= _LEAST_MARGIN]
    if len(straight) >= 2 and min(straight) >= _STRAIGHT_SHARE:
        return "frame", share
    return ("ground" if len(straight) >= 3 else "none"), share


def jpeg_quality(tables: dict[int, Any]) -> int | None:
    """The libjpeg quality, 1 to 100, whose luminance table comes nearest; None where there is no table."""
    table: list[int] = list(tables.get(0, ()))
    if len(table) != len(_LUMA_TABLE):
        return None
    # At low quality entries end at 255, and say nothing more.
    pairs = [(entry, base) for entry, base in zip(table, _LUMA_TABLE, strict=True) if entry < 255]
    scale = 100 * sum(entry for entry, _ in pairs) / sum(base for _, base in pairs) if pairs else 5000
    quality = (200 - scale) / 2 if scale <= 100 else 5000 / scale
    return min(100, max(1, round(quality)))


def make_thumbnail(rgb: Image.Image) -> bytes:
    """JPEG of at most THUMBNAIL_PX a side."""
    small = rgb.copy()
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), reducing_gap=2)
    content = io.BytesIO()
    small.save(content, "JPEG", quality=_THUMBNAIL_QUALITY)
    return content.getvalue()


def _reduced(image: Image.Image) -> Image.Image:
    """Box-reduced by a whole factor, to no less than NORMAL_PX²."""
    factor = int(math.sqrt(image.width * image.height) / NORMAL_PX)
    return image.reduce(factor) if factor >= 2 else image


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # noqa: BLE001 - broken EXIF raises anything; decoding says so in its guesses
        return 1
    return value if value in range(1, 9) else 1


def _alpha_share(image: Image.Image) -> float:
    if not image.has_transparency_data:
        return 0.0
    alpha = image.getchannel("A") if image.mode in {"RGBA", "LA"} else image.convert("RGBA").getchannel("A")
    return 1 - alpha.histogram()[255] / (image.width * image.height)


def _inside(luma: Luma, share: tuple[float, float, float, float]) -> Luma:
    height, width = luma.shape
    left, top = round(share[0] * width), round(share[1] * height)
    return luma[top : height - round(share[3] * height), left : width - round(share[2] * width)]


def _in_pixels(share: tuple[float, float, float, float], size: tuple[int, int]) -> Margins:
    left, top, right, bottom = share
    return round(left * size[0]), round(top * size[1]), round(right * size[0]), round(bottom * size[1])


def _edge_lines(drawn: np.ndarray[Any, Any]) -> tuple[float, float, float, float]:
    """Share of the outermost lines that is drawn upon: left, top, right, bottom. The second and third line in are
    looked at, since the outermost is blended with the margin.
    """
    deep = slice(1, 3)
    back = slice(-3, -1)
    lines = (drawn[:, deep], drawn[deep], drawn[:, back], drawn[back])
    left, top, right, bottom = (float(line.mean()) if line.size else 0.0 for line in lines)
    return left, top, right, bottom
