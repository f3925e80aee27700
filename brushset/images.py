"""How any image of a stranger becomes plain 8-bit sRGB RGB, or one line that says why not and what to do.

Strangers' files are decoded here and nowhere else: formats are told by content and limited to six, the size is
checked before a pixel is decoded, a truncated file is an error and never a grey half. Everything downstream sees only
files that we wrote. Measured on 2 cores: 148 RGBA images of 1024×1024 in 3.4 s by two threads, 4.7 s by one.
"""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol, TypeVar

from PIL import Image

from brushset.files import sha256_file
from brushset.listing import list_source_images
from brushset.refusal import FORMATS, UnusableImage, refusal, too_large
from brushset.srgb import NoDefinedWhite, to_srgb

if TYPE_CHECKING:  # processes that only decode start without the spec and the library that checks it
    from brushset.protocols import Emit

CAPTION_SUFFIX = ".txt"
UNREADABLE = "unreadable"
_RACY_S = 2.0
_DIGESTS: dict[Path, tuple[str, tuple[int, ...]]] = {}

_THREADS = min(8, os.cpu_count() or 1)

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class OpenedImage:
    """A decoded image. `rgb` is mode RGB, upright, without metadata; `format` and `mode` are the file's own.

    `conversions` says what was done to the pixels beyond decoding them, `guesses` what could not be known; each is a
    text for people, the same for all images of the same kind.
    """

    rgb: Image.Image
    format: str
    mode: str
    conversions: tuple[str, ...]
    guesses: tuple[str, ...]

    @property
    def note(self) -> str:
        """The guesses as one line."""
        return "; ".join(self.guesses)


class Shrink(Protocol):
    """For who needs less than all pixels: sees the image before it is decoded, where JPEG can be decoded to a
    fraction, and may make it smaller before its colours are converted.
    """

    def before_decoding(self, image: Image.Image) -> None: ...

    def after_decoding(self, image: Image.Image) -> Image.Image: ...


def sidecar_of(image: Path) -> Path:
    """The caption file that belongs to an image: same folder, same stem, .txt. It need not be there."""
    return image.with_suffix(CAPTION_SUFFIX)


def source_digest(folder: Path) -> dict[str, str]:
    """Relative path → SHA-256 of every image below `folder` and of every caption beside one.

    A file that cannot be read has the value "unreadable": the audit reports it.
    """
    images = list_source_images(folder)
    captions = {sidecar_of(image) for image in images}
    paths = sorted([*images, *(path for path in captions if path.is_file())])
    digests = run_threads(digest_or_unreadable, paths)
    return {path.relative_to(folder).as_posix(): digest for path, digest in zip(paths, digests, strict=True)}


def digest_or_unreadable(path: Path) -> str:
    """SHA-256 of a file, or "unreadable". A file that lay untouched is not read again by the same process: a run's
    identity and the audit's digest ask for the same ones.
    """
    try:
        facts = path.stat()
        state = (facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
        if _DIGESTS.get(path, ("", ()))[1] != state:
            digest = sha256_file(path)
            if time.time() - facts.st_ctime < _RACY_S:  # a change right after would leave the same times
                return digest
            _DIGESTS[path] = (digest, state)
        return _DIGESTS[path][0]
    except OSError:
        return UNREADABLE


def open_as_rgb(path: Path, background: str, max_megapixels: float) -> Image.Image:
    """The image as upright 8-bit sRGB RGB without metadata. See open_image."""
    return open_image(path, background, max_megapixels).rgb


def open_image(path: Path, background: str, max_megapixels: float) -> OpenedImage:
    """Decodes the first frame to upright 8-bit sRGB, transparency laid over `background` (see brushset.srgb).

    Raises:
        UnusableImage: the file cannot be read, is no image of FORMATS, is damaged, or is above `max_megapixels`.
    """
    return decode_image(path, path, background, max_megapixels)


def decode_image(
    source: Path | IO[bytes], path: Path, background: str, max_megapixels: float, shrink: Shrink | None = None
) -> OpenedImage:
    """As open_image, from a file or its content; `path` is named in messages."""
    try:
        with _STRICT_PILLOW, Image.open(source, formats=FORMATS) as image:
            _refuse_large(path, image.size, max_megapixels)
            if shrink is not None:
                shrink.before_decoding(image)
            conversions = _load(image)
            result = to_srgb(shrink.after_decoding(image) if shrink else image, background)
            conversions += result.conversions
            return OpenedImage(result.rgb, image.format or "", image.mode, conversions, result.guesses)
    except UnusableImage:
        raise
    except NoDefinedWhite as error:
        raise UnusableImage(path, str(error), "save it with 8 bits a sample, or remove it") from error
    except Exception as error:  # decoders fed with strangers' bytes raise anything, even TypeError
        raise refusal(path, error, max_megapixels) from error


def run_threads(work: Callable[[T], U], items: Sequence[T], emit: Emit | None = None, what: str = "") -> list[U]:
    """`work` on each item, results in order, on as many threads as pay: decoding and hashing release Python's lock."""
    results: list[U] = []
    pool = ThreadPoolExecutor(_THREADS)
    try:
        for result in pool.map(work, items):
            results.append(result)
            if emit is not None:
                emit("progress", what=what, done=len(results), total=len(items))
    finally:
        pool.shutdown(cancel_futures=True)  # what is not begun is not waited for where one failed, or on Ctrl-C
    return results


class _StrictPillow:
    """While any thread decodes: Pillow's bomb warning is an error, and its remarks on sloppy metadata are not heard.

    Entries are counted because Python's warning filters belong to the process, not to a thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.simplefilter("ignore")
                warnings.simplefilter("error", Image.DecompressionBombWarning)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._filters.__exit__(None, None, None)


_STRICT_PILLOW = _StrictPillow()


def is_flat(image: Image.Image) -> bool:
    """Whether it is of one single colour: what a NaN in half precision, or a safety filter, leaves."""
    return all(low == high for low, high in (channel.getextrema() for channel in image.convert("RGB").split()))


def _load(image: Image.Image) -> tuple[str, ...]:
    """Decodes the first frame; returns what that already changes of the file."""
    said = []
    if getattr(image, "is_animated", False):
        said.append(f"several frames ({image.format}): the first is taken")
    deep = _is_16_bit(image)
    image.load()
    if deep:
        said.append("16 bits a sample: scaled to 8")
        _scale_colour_key(image)
    return tuple(said)


def _is_16_bit(image: Image.Image) -> bool:
    """Only an image that is opened and not yet loaded can tell, where it has three or four samples a pixel."""
    tiles = getattr(image, "tile", [])
    args = tiles[0][3] if tiles else ""
    return ";16" in str(args if isinstance(args, str) else [*(args or ()), ""][0])


def _scale_colour_key(image: Image.Image) -> None:
    """Pillow keeps the upper half of each 16-bit sample, and compares the transparent colour's whole value with it."""
    key = image.info.get("transparency")
    if isinstance(key, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in key)


def _refuse_large(path: Path, size: tuple[int, int], max_megapixels: float) -> None:
    megapixels = size[0] * size[1] / 1e6
    if megapixels > max_megapixels:
        raise too_large(path, f"{size[0]}×{size[1]} is ", megapixels, max_megapixels)
