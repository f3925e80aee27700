"""Why a file is no usable image, in words that a person can act on.

Decoders say "unrecognized data stream contents"; people rename a web page to .png. What a file is instead is told by
its first bytes.
"""

from __future__ import annotations

import re
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from brushset.errors import InputError
from brushset.files import one_line, shown

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")

_CONVERT = "save it as PNG or JPEG, or remove it"
_FETCH_AGAIN = "download or copy it again, or remove it"
_TRUNCATED = "truncated: the end of the file is missing"
_HEAD_BYTES = 512
# First bytes of what is read here, and so is damaged where it is not recognised.
_OURS = {
    b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"GIF8": "GIF", b"BM": "BMP", b"II*\0": "TIFF", b"MM\0*": "TIFF",
}  # fmt: skip
# Offset and bytes of what is not.
_OTHERS = (
    (4, b"ftypavif", "an AVIF"), (4, b"ftypheic", "a HEIC"), (4, b"ftypheix", "a HEIC"), (4, b"ftypmif1", "a HEIF"),
    (0, b"\xff\x0a", "a JPEG XL"), (0, b"\0\0\0\x0cJXL ", "a JPEG XL"), (0, b"\0\0\0\x0cjP  ", "a JPEG 2000"), (0, b"\xffO\xffQ", "a JPEG 2000"),
    (0, b"8BPS", "a Photoshop"), (0, b"gimp xcf", "a GIMP"), (0, b"\0\0\1\0", "an icon"), (0, b"%PDF", "a PDF"),
    (0, b"v/1\1", "an OpenEXR"), (0, b"#?RADIANCE", "a Radiance HDR"), (0, b"DDS ", "a DDS"),
    (0, b"PK\3\4", "a ZIP"), (4, b"ftyp", "a video"), (0, b"\x1aE\xdf\xa3", "a video"),
)  # fmt: skip
_PORTABLE_ANYMAP = re.compile(rb"P[1-7]\s")


class UnusableImage(InputError):
    """One file that cannot be had as an image; `reason` and `fix` are the message's parts."""

    def __init__(self, path: Path, reason: str, fix: str) -> None:
        self.reason = reason
        self.fix = fix
        super().__init__(f"{shown(path)}: {reason}; fix: {fix}")


def too_large(path: Path, what: str, megapixels: float, max_megapixels: float) -> UnusableImage:
    """A file that is not decoded because of its size in pixels."""
    reason = f"{what}{megapixels:.0f} megapixels, above [dataset] max_megapixels = {max_megapixels:g}"
    return UnusableImage(path, reason, "scale it down, or remove it")


def refusal(path: Path, error: Exception, max_megapixels: float) -> UnusableImage:
    """What Pillow raised on `path`, in words for people."""
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        pixels = re.search(r"(\d+) pixels", str(error))
        return too_large(path, "", int(pixels[1]) / 1e6 if pixels else float("nan"), max_megapixels)
    if isinstance(error, UnidentifiedImageError):
        return UnusableImage(path, *_what_it_is(path))
    if isinstance(error, OSError) and error.errno is not None:
        return UnusableImage(path, f"cannot be read: {error.strerror}", "its permissions, or remove it")
    if _is_cut_webp(path):
        return UnusableImage(path, _TRUNCATED, _FETCH_AGAIN)
    message = one_line((str(error).strip().splitlines() or [type(error).__name__])[0])
    if "truncated" in message.lower():
        return UnusableImage(path, _TRUNCATED, _FETCH_AGAIN)
    if "Decompressed data too large" in message:
        return UnusableImage(path, "its metadata unpacks to more than is safe", "save it anew without metadata")
    return UnusableImage(path, f"damaged ({message})", _FETCH_AGAIN)


def _what_it_is(path: Path) -> tuple[str, str]:
    """Reason and fix for a file that is no image of FORMATS, from its first bytes."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        return f"cannot be read: {error.strerror}", "its permissions, or remove it"
    if not head:
        return "empty: 0 bytes", _FETCH_AGAIN
    for start, name in _OURS.items():
        if head.startswith(start):
            return f"damaged: it begins as a {name} and does not go on as one", _FETCH_AGAIN
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "damaged: it begins as a WEBP and does not go on as one", _FETCH_AGAIN
    for offset, mark, name in _OTHERS:
        if head[offset:].startswith(mark):
            return f"{name} file, which is not read here", _CONVERT
    if _PORTABLE_ANYMAP.match(head):
        return "a portable anymap (PNM) file, which is not read here", _CONVERT
    return _what_text_it_is(head) or (f"no {', '.join(FORMATS[:-1])} or {FORMATS[-1]}", _CONVERT)


def _is_cut_webp(path: Path) -> bool:
    """Its decoder says nothing of the kind, but its header states the file's size."""
    try:
        with path.open("rb") as file:
            head = file.read(12)
        is_webp = head.startswith(b"RIFF") and head[8:] == b"WEBP"
        return is_webp and path.stat().st_size < int.from_bytes(head[4:8], "little") + 8
    except OSError:
        return False


def _what_text_it_is(head: bytes) -> tuple[str, str] | None:
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the image itself", "git lfs pull"
    lowered = head.lower()
    if b"<svg" in lowered:
        return "an SVG file, which is not read here", _CONVERT
    if b"<html" in lowered or b"<!doctype html" in lowered:
        return "a web page, not an image", "download the image itself, or remove it"
    if all(byte >= 0x20 or byte in b"\t\r\n\f" for byte in head):
        return "text, not an image", "remove it"
    return None
