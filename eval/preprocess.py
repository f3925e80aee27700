"""One image as a network wants it, by PIL on every machine: fitted, resized, cropped, normalised.

Generated images and references go through the same code, in the same order, at the same size. Processors of transformers
come slow and fast, and differ in the last digits; this is the slow one's arithmetic, whose parameters stand in the
extractor's id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocess:
    """Shortest side to `resize_px` (bicubic, antialiased), the middle `crop_px` square, then (x/255 − mean) / std."""

    resize_px: int
    crop_px: int
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    @property
    def description(self) -> str:
        """For the extractor's id."""
        known = {CLIP_MEAN: "CLIP's mean", IMAGENET_MEAN: "ImageNet's mean"}
        mean = known.get(self.mean, f"mean {self.mean}")
        return f"PIL bicubic {self.resize_px}, centre {self.crop_px}, {mean}"

    def __call__(self, images: Sequence[Image]) -> np.ndarray:
        """float32 [N, 3, crop, crop]."""
        import numpy as np

        pixels = np.stack([np.asarray(self._cut(image), dtype=np.float32) for image in images]) / 255
        scaled = (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))

    def _cut(self, image: Image) -> Image:
        from PIL import Image as Pictures

        rgb, short = image.convert("RGB"), min(image.size)
        width, height = (int(self.resize_px * side / short) for side in image.size)
        sized = rgb.resize((width, height), Pictures.Resampling.BICUBIC)
        left, top = (width - self.crop_px) // 2, (height - self.crop_px) // 2
        return sized.crop((left, top, left + self.crop_px, top + self.crop_px))


def fitted(rgb: Image, size: tuple[int, int]) -> Image:
    """An image as every metric sees it: filling `size` (width, height) by bicubic, what stands over cut off."""
    from PIL import Image as Pictures
    from PIL import ImageOps

    return rgb if rgb.size == size else ImageOps.fit(rgb, size, Pictures.Resampling.BICUBIC)


def open_rgb(path: Path) -> Image:
    """One of our own image files."""
    from PIL import Image as Pictures

    with Pictures.open(path) as image:
        return image.convert("RGB")
