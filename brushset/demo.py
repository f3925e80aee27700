"""What a smoke run trains on: photographs that ship inside scikit-image and scikit-learn, painted in the style.

Nothing is fetched. Crops, mirrorings and brush sizes are drawn from a seeded generator, so that a machine makes the
same bytes each time; the painting is OpenCV's non-photorealistic filters. It is no art: it is three sets that differ
as styles do, so that a run without images shows what a run with images does. 24 images take 3 s on 2 cores.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brushset.errors import EnvironmentProblem
from brushset.files import publish_folder, write_atomic
from brushset.images import run_threads
from brushset.listing import list_source_images
from brushset.paths import cache_dir

if TYPE_CHECKING:
    import numpy as np

    Pixels = np.ndarray[Any, np.dtype[np.uint8]]

VERSION = 1

# Mostly square, as sets for SD 1.5 are; the others so that a smoke run goes through more than one bucket.
_SHAPES = ((512, 512), (512, 512), (512, 640), (512, 512), (640, 512), (512, 512), (512, 512), (512, 768))
_SEED = 20150


@dataclass(frozen=True)
class Photograph:
    """A file inside an installed package, and whom it is owed to."""

    package: str
    file: str
    credit: str


PHOTOGRAPHS = (
    Photograph("skimage", "data/astronaut.png", "Eileen Collins, NASA Great Images; public domain"),
    Photograph("sklearn", "datasets/images/china.jpg", "danielbuechele on Flickr; CC BY 2.0"),
    Photograph("skimage", "data/chelsea.png", "Chelsea the cat, Stefan van der Walt; CC0"),
    Photograph("skimage", "data/coffee.png", "Rachel Michetti, courtesy of Pikolo Espresso Bar; CC0"),
    Photograph("sklearn", "datasets/images/flower.jpg", "vultilion on Flickr; CC BY 2.0"),
    Photograph("skimage", "data/rocket.jpg", "Falcon 9, SpaceX Photos; public domain"),
    Photograph("skimage", "data/motorcycle_left.png", "Middlebury Stereo 2014, D. Scharstein and others; CC0"),
)


def demo_folder(style: str) -> Path:
    """Where the demo images of a style are kept: in the user's cache. Nothing is made."""
    return cache_dir() / "demo" / f"{style}-v{VERSION}"


def demo_images(style: str, folder: Path | None = None, count: int = 24) -> Path:
    """A folder of `count` painted photographs, made on first use; an unfinished one is never handed out.

    Args:
        style: "watercolor", "cartoon" and "anime" have recipes; any other name gets one of the plain filters.
        folder: where to put them; by default the user's cache.
        count: how many.

    Raises:
        EnvironmentProblem: the packages that hold the photographs lack them, or the disk cannot be written.
    """
    target = folder or demo_folder(style)
    if target.is_dir() and len(list_source_images(target)) == count:
        return target
    temporary = target.with_name(f".tmp-{target.name}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        _paint_all(style, temporary, count)
        publish_folder(temporary, target)
    except OSError as error:
        raise EnvironmentProblem(
            f"{target}: cannot be written: {error.strerror}; fix: free the disk, or point BRUSHSET_CACHE elsewhere"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def recipe_of(style: str) -> Callable[[Pixels], Pixels]:
    """The painting function of a style: uint8 [H, W, 3] BGR to the same."""
    named: dict[str, Callable[[Pixels], Pixels]] = {"watercolor": _watercolor, "cartoon": _cartoon, "anime": _anime}
    plain = (_oil, _pencil, _soft)
    return named.get(style) or plain[hashlib.sha256(style.encode()).digest()[0] % len(plain)]


def _paint_all(style: str, folder: Path, count: int) -> None:
    import cv2

    photographs = [_read(photograph) for photograph in PHOTOGRAPHS]
    paint = recipe_of(style)

    def paint_one(index: int) -> None:
        crop = _crop(photographs[index % len(photographs)], index)
        ok, png = cv2.imencode(".png", paint(crop))
        assert ok
        write_atomic(folder / f"{style}-{index:02d}.png", png.tobytes())

    run_threads(paint_one, range(count))
    write_atomic(folder / "ATTRIBUTION.txt", _attribution(style))


def _read(photograph: Photograph) -> Pixels:
    import cv2

    spec = importlib.util.find_spec(photograph.package)
    path = Path(str(spec.origin)).parent / photograph.file if spec else Path(photograph.file)
    # Decoded from memory because cv2.imread cannot open every path that Python can.
    pixels = cv2.imdecode(_bytes_of(path, photograph.package), cv2.IMREAD_COLOR)
    if pixels is None:
        raise EnvironmentProblem(f"{path}: cannot be decoded; fix: install {photograph.package} anew (uv sync)")
    return pixels


def _bytes_of(path: Path, package: str) -> Pixels:
    import numpy as np

    if not path.is_file():
        raise EnvironmentProblem(
            f"{path}: no such file; fix: install the locked {package} (uv sync), or pass --images DIR"
        )
    return np.frombuffer(path.read_bytes(), dtype=np.uint8)


def _crop(photograph: Pixels, index: int) -> Pixels:
    """A part of the photograph in one of the shapes, scaled so that the part is most of it, perhaps mirrored."""
    import cv2
    import numpy as np

    random = np.random.default_rng([_SEED, index])
    width, height = _SHAPES[index % len(_SHAPES)]
    share = random.uniform(0.62, 0.95)
    scale = max(width / photograph.shape[1], height / photograph.shape[0]) / share
    size = (round(photograph.shape[1] * scale) + 1, round(photograph.shape[0] * scale) + 1)
    scaled = cv2.resize(photograph, size, interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA)
    left = int(random.integers(0, size[0] - width + 1))
    top = int(random.integers(0, size[1] - height + 1))
    part = scaled[top : top + height, left : left + width]
    return np.ascontiguousarray(part[:, ::-1] if random.random() < 0.5 else part)


def _watercolor(photo: Pixels) -> Pixels:
    """Washes that bleed into one another, thinned with water, on rough paper that stays bare at the rim."""
    import cv2
    import numpy as np

    height, width = photo.shape[:2]
    random = np.random.default_rng(int(photo.sum()))
    washes = cv2.stylization(cv2.medianBlur(photo, 7), sigma_s=60, sigma_r=0.55).astype(np.float32) / 255
    thinned = 1 - (1 - washes) * (0.68 + 0.09 * _noise(random, (height, width), 70))[..., None]
    grain = 0.5 * _noise(random, (height, width), 2) + 0.5 * _noise(random, (height, width), 5)
    toned = thinned + 0.10 * (1 - thinned) * grain[..., None]
    paint = _painted_part(random, (height, width))[..., None]
    paper = np.array([0.93, 0.96, 0.98], np.float32) * (1 + 0.025 * grain[..., None])
    return _to_bytes(toned * paint + paper * (1 - paint))


def _cartoon(photo: Pixels) -> Pixels:
    """A few flat, bright colours inside thick ink lines."""
    import cv2
    import numpy as np

    height, width = photo.shape[:2]
    half = cv2.resize(photo, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    smooth = cv2.resize(cv2.pyrMeanShiftFiltering(half, 8, 30), (width, height), interpolation=cv2.INTER_CUBIC)
    flat = cv2.medianBlur(_few_colours(smooth, 10), 9)
    lit = (255 * (flat.astype(np.float32) / 255) ** 0.72).astype(np.uint8)
    lines = _ink(smooth, width_px=3, threshold=34)
    return np.where(lines[..., None], np.uint8(18), _saturated(lit, colour=1.75, light=1.08))


def _anime(photo: Pixels) -> Pixels:
    """Smooth skin-like surfaces in three steps of light, cool shadows, thin lines in a darker shade of the colour."""
    import cv2
    import numpy as np

    smooth = cv2.edgePreservingFilter(photo, flags=cv2.RECURS_FILTER, sigma_s=40, sigma_r=0.35)
    lab = cv2.cvtColor(cv2.bilateralFilter(smooth, 9, 40, 9).astype(np.float32) / 255, cv2.COLOR_BGR2LAB)
    light = lab[..., 0] / 100
    steps = np.float32(0.34) + sum(
        weight / (1 + np.exp(-(light - at) * 38)) for at, weight in ((0.2, 0.22), (0.42, 0.22), (0.68, 0.18))
    )
    lab[..., 0] = 100 * np.clip(0.25 * light + 0.78 * steps, 0, 1)
    lab[..., 1:] *= 1.35
    lab[..., 2] -= 14 * (1 - steps)
    lab[..., 1] += 6 * (1 - steps)
    cels = cv2.cvtColor(lab, cv2.COLOR_LAB2BGR)
    lines = cv2.GaussianBlur(_ink(smooth, width_px=1, threshold=26).astype(np.float32), (3, 3), 0.6)
    glow = cv2.GaussianBlur(np.clip(cels - 0.72, 0, 1), (0, 0), 14)
    return _to_bytes((cels + 0.7 * glow) * (1 - 0.72 * lines[..., None]))


def _oil(photo: Pixels) -> Pixels:
    """Broad strokes of nearly one colour."""
    import cv2

    return _saturated(cv2.pyrMeanShiftFiltering(photo, 18, 28), colour=1.25, light=1.0)


def _pencil(photo: Pixels) -> Pixels:
    """Coloured pencil."""
    import cv2

    _, coloured = cv2.pencilSketch(photo, sigma_s=50, sigma_r=0.08, shade_factor=0.045)
    return coloured


def _soft(photo: Pixels) -> Pixels:
    """Edges kept, texture gone."""
    import cv2

    return cv2.edgePreservingFilter(photo, flags=cv2.NORMCONV_FILTER, sigma_s=60, sigma_r=0.45)


def _few_colours(photo: Pixels, colours: int) -> Pixels:
    """Each pixel in the nearest of `colours` cluster means, found on a small copy."""
    import cv2
    import numpy as np

    small = cv2.resize(photo, (96, 96), interpolation=cv2.INTER_AREA).reshape(-1, 3).astype(np.float32)
    # Starting labels are given, not drawn: OpenCV's own generator is shared between threads.
    labels = (small.sum(axis=1).argsort().argsort() * colours // len(small)).astype(np.int32)[:, None]
    stop = (cv2.TERM_CRITERIA_MAX_ITER, 12, 0)
    _, _, centres = cv2.kmeans(small, colours, labels, stop, 1, cv2.KMEANS_USE_INITIAL_LABELS)
    # argmin of |p - c|² without |p|², which is the same for all c.
    distance = (centres**2).sum(axis=1) - 2 * (photo.reshape(-1, 3).astype(np.float32) @ centres.T)
    return centres[distance.argmin(axis=1)].reshape(photo.shape).astype(np.uint8)


def _ink(photo: Pixels, width_px: int, threshold: float) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Where a draughtsman would put a line: bool [H, W]."""
    import cv2
    import numpy as np

    grey = cv2.GaussianBlur(cv2.cvtColor(photo, cv2.COLOR_BGR2GRAY), (0, 0), 1.2)
    edges = cv2.Canny(grey, threshold, threshold * 2.4)
    count, pieces, stats, _ = cv2.connectedComponentsWithStats(edges, connectivity=8)
    long_enough = np.zeros(count, bool)
    long_enough[1:] = stats[1:, cv2.CC_STAT_AREA] >= 28
    lines = long_enough[pieces].astype(np.uint8)
    if width_px > 1:
        lines = cv2.dilate(lines, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width_px, width_px)))
    return lines.astype(bool)


def _saturated(photo: Pixels, colour: float, light: float) -> Pixels:
    import cv2
    import numpy as np

    hsv = cv2.cvtColor(photo.astype(np.float32) / 255, cv2.COLOR_BGR2HSV)
    hsv[..., 1] = np.clip(hsv[..., 1] * colour, 0, 1)
    hsv[..., 2] = np.clip(hsv[..., 2] * light, 0, 1)
    return _to_bytes(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR))


def _noise(random: np.random.Generator, size: tuple[int, int], cell: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Smooth noise of about ±1 in an array of (height, width), whose grains are `cell` pixels wide."""
    import cv2
    import numpy as np

    height, width = size
    coarse = random.standard_normal((height // cell + 2, width // cell + 2)).astype(np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def _painted_part(random: np.random.Generator, size: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """1 where there is paint, 0 where the paper is bare, in an array of (height, width)."""
    import numpy as np

    height, width = size
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    inset = np.minimum(np.minimum(x, width - 1 - x), np.minimum(y, height - 1 - y))
    wobble = 12 * _noise(random, size, 40) + 4 * _noise(random, size, 9)
    return 1 / (1 + np.exp(-(inset - 24 + wobble) / 2.0))


def _to_bytes(values: np.ndarray[Any, np.dtype[np.float32]]) -> Pixels:
    import numpy as np

    return (np.clip(values, 0, 1) * 255 + 0.5).astype(np.uint8)


def _attribution(style: str) -> str:
    lines = [f"Made by brushset: crops of these photographs, painted in the style {style} by OpenCV's filters.", ""]
    lines += [f"{photo.package}/{photo.file}: {photo.credit}" for photo in PHOTOGRAPHS]
    return "\n".join(lines) + "\n"
