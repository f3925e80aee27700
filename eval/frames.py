"""Pictures on their way to what looks at them: out of memory where they were just made, else from their file.

A generated picture's PNG is written aside (eval/aside.py), for people and for who comes later; no network waits for it. What
a network gets is the same: PNG loses nothing, and PIL's resize of the same pixels is the same, so that a vector is found
again under the hash of the pixels whichever way a picture came. The resize is PIL's on a GPU too: torch's bicubic does not
round between its two passes, which moves 7 % of the values, by up to 10 of 255.

CPU seconds of 100 pictures of 512 × 512, one core: 4.7 to write the PNGs, 0.74 to read them, 0.11 to hash the pixels, 0.59 to
resize them for one network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from eval.preprocess import fitted, open_rgb

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_BYTES = 2 << 30
"""Of pixels in memory, some 2,000 pictures of 512 × 512: more than choosing makes. The oldest go first."""
_PIXEL_BYTES = 4  # PIL's, of RGB


@dataclass(frozen=True)
class Frame:
    """One picture as every metric sees it. `key` is the hash of its pixels; they are fetched when a network wants them."""

    key: str
    load: Callable[[], Image]

    @classmethod
    def of(cls, image: Image) -> Frame:
        """A picture that is at hand."""
        return cls(image_key(image), lambda: image)

    @cached_property
    def image(self) -> Image:
        """Kept as long as the frame is."""
        return self.load()


@dataclass
class Frames:
    """The pictures of one stage: pixels of those made last, the hash of all that were looked at. Files do not change under
    their names while a stage works.
    """

    most_bytes: int = MOST_BYTES
    _held: dict[Path, Image] = field(default_factory=dict)
    _keys: dict[tuple[Path, tuple[int, int]], str] = field(default_factory=dict)
    _bytes: int = 0

    def put(self, path: Path, image: Image) -> None:
        """A picture just made, in RGB, which is being written to `path`."""
        self._held[path] = image
        self._bytes += _size_of(image)
        while self._bytes > self.most_bytes:
            oldest = next(iter(self._held))
            self._bytes -= _size_of(self._held.pop(oldest))

    def open(self, path: Path) -> Image:
        """A picture in RGB."""
        held = self._held.get(path)
        return open_rgb(path) if held is None else held

    def frame(self, path: Path, size: tuple[int, int]) -> Frame:
        """A picture fitted to `size`; opened only where its hash is not known."""
        known = self._keys.get((path, size))
        if known is not None:
            return Frame(known, lambda: fitted(self.open(path), size))
        frame = Frame.of(fitted(self.open(path), size))
        self._keys[path, size] = frame.key
        return frame


def image_key(image: Image) -> str:
    """SHA-256 of an image's pixels and size."""
    rgb = image.convert("RGB")
    return hashlib.sha256(repr(rgb.size).encode() + rgb.tobytes()).hexdigest()


def _size_of(image: Image) -> int:
    return _PIXEL_BYTES * image.width * image.height
