"""Captions from file names: "a_red-fox_in snow (3).jpg" → "a red fox in snow".

Only words are kept. Numbers, hashes, dates and what cameras, scanners and browsers call their files say nothing about
the picture; where nothing else is left, the caption is the trigger alone.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from brushset.files import one_line
from brushset.protocols import Describe, Emit, Subject
from brushset.spec import CaptionSection

# What cameras, phones, scanners, screen grabbers and browsers write before or after a number.
_MACHINES = (
    "img image images imgp dsc dscn dscf dscsc pxl mvimg gopr gopro dji sam cimg kodak pict pic picture photo scan scanned "
    "scn screenshot screen shot untitled unnamed unbenannt whatsapp signal wa fb fbimg received download downloaded copy "
    "kopie duplicate final edited edit resized cropped upscaled output render bearbeitet jpeg jpg png webp bmp gif tiff tif "
    "hd uhd fhd px dpi"
)  # fmt: skip
_HASH = re.compile(r"(?=[a-f]*\d)[0-9a-f]{6,}|[0-9a-f]{12,}", re.IGNORECASE)
_ID = re.compile(r"(?=\D*\d)(?=[^a-z]*[a-z])\w{8,}", re.IGNORECASE)
_VERSION = re.compile(r"v?\d+[a-z]?|\d+x\d+|\d+(?:st|nd|rd|th|px|k|mp)", re.IGNORECASE)


class FilenameCaptioner:
    """Words of the user's file name, in their order; commas stay, so that tags may be written there."""

    name = "filename"
    settings = ""

    def __init__(self, section: CaptionSection) -> None:
        self.batch_size = section.batch_size

    def weights(self) -> str:
        """None."""
        return ""

    def load(self, emit: Emit) -> Describe:  # noqa: ARG002 - the protocol's
        """What the names say."""
        return _describe


def words_of(name: str) -> str:
    """A file's name without its suffix, as a caption."""
    text = one_line(unicodedata.normalize("NFC", name))
    parts = (_clean(part) for part in text.split(","))
    return ", ".join(filter(None, parts))


def _describe(subjects: Sequence[Subject]) -> list[str]:
    return [words_of(subject.source.stem) for subject in subjects]


def _clean(part: str) -> str:
    tokens = [token for token in re.split(r"[\s_+~.;:|()\[\]{}#@&%!?=/\\]+", part) if token and not _is_code(token)]
    words = [word for token in tokens for word in re.split(r"[-–—]+", token)]
    kept = [word for word in words if _says_something(word)]
    return " ".join(word for word, before in zip(kept, ["", *kept], strict=False) if word.lower() != before.lower())


def _is_code(token: str) -> bool:
    """A UUID, a hash with hyphens, a date."""
    return bool(re.fullmatch(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[\d-]+", token, re.IGNORECASE))


def _says_something(word: str) -> bool:
    letters = re.sub(r"\d+", "", word)
    return bool(
        letters.strip("'’\"")
        and not _VERSION.fullmatch(word)
        and not _HASH.fullmatch(word)
        and not _ID.fullmatch(word)
        and letters.lower() not in _MACHINES.split()
        and (letters == word or len(letters) > 2)
    )
