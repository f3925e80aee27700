"""The one seam through which metrics look: images in, vectors out, each distinct image once.

An embedder's `id` names model, weights and preprocessing: equal ids give equal vectors, up to the rounding of another batch
size. Vectors of real models are kept on disk by the image's pixels and that id; the network is loaded when an image comes
that is not there, so that scoring a finished run again loads none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from eval.frames import Frame
from eval.kept import KeptVectors
from eval.metric import NotMeasured

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

T = TypeVar("T")

BATCH_SIZE = 16


@dataclass(frozen=True)
class Towers:
    """A loaded network: rows [N, D] of images, and of texts where it reads any."""

    images: Callable[[Sequence[Image]], np.ndarray]
    texts: Callable[[Sequence[str]], np.ndarray] | None = None


@dataclass(frozen=True)
class Identity:
    """What an extractor is. `sha256` is that of its weights, empty where it has none; `note` says how it was had, where
    that limits what its numbers mean.
    """

    id: str
    sha256: str
    meaningful: bool
    note: str = ""


@dataclass(frozen=True)
class Embedder:
    """A network behind brushset.protocols.Embedder. `unit` False leaves lengths as they are: FID's features, hashes."""

    identity: Identity
    load: Callable[[], Towers]
    unit: bool = True
    batch_size: int = BATCH_SIZE
    kept: KeptVectors | None = None
    _known: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    @property
    def id(self) -> str:
        """Model, weights and preprocessing."""
        return self.identity.id

    @property
    def meaningful(self) -> bool:
        """False for made-up weights."""
        return self.identity.meaningful

    @cached_property
    def _towers(self) -> Towers:
        return self.load()

    def release(self) -> None:
        """Forgets the network, not what it saw."""
        self.__dict__.pop("_towers", None)

    def encode_images(self, images: Sequence[Image]) -> np.ndarray:
        """float32 [N, D], of unit length unless `unit` is False."""
        return self.encode_frames([Frame.of(image) for image in images])

    def encode_frames(self, frames: Sequence[Frame]) -> np.ndarray:
        """The same of frames, of which only those that were not seen before are opened."""
        return self._encode([frame.key for frame in frames], frames, self._image_rows)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [N, D], as images.

        Raises:
            NotMeasured: it reads no text.
        """
        keys = [f"text {hashlib.sha256(text.encode()).hexdigest()}" for text in texts]
        return self._encode(keys, texts, self._text_rows)

    def _image_rows(self, frames: Sequence[Frame]) -> np.ndarray:
        return self._towers.images([frame.image for frame in frames])

    def _text_rows(self, texts: Sequence[str]) -> np.ndarray:
        if self._towers.texts is None:
            raise NotMeasured(f"{self.id} reads no text")
        return self._towers.texts(texts)

    def _encode(
        self, keys: Sequence[str], items: Sequence[T], rows_of: Callable[[Sequence[T]], np.ndarray]
    ) -> np.ndarray:
        import numpy as np

        wanted = [key for key in dict.fromkeys(keys) if key not in self._known]
        if self.kept and wanted:
            self._known.update(self.kept.read(self.id, wanted))
        missing = {key: item for key, item in zip(keys, items, strict=True) if key not in self._known}
        names = list(missing)
        for start in range(0, len(names), self.batch_size):
            batch = names[start : start + self.batch_size]
            rows = np.asarray(rows_of([missing[key] for key in batch]), dtype=np.float32)
            made = dict(zip(batch, _unit_rows(rows) if self.unit else rows, strict=True))
            self._known.update(made)
            if self.kept:
                self.kept.write(self.id, made)
        return np.stack([self._known[key] for key in keys]) if keys else np.zeros((0, 0), np.float32)


def _unit_rows(rows: np.ndarray) -> np.ndarray:
    import numpy as np

    return np.asarray(rows / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True), dtype=np.float32)
