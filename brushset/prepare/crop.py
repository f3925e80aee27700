"""Which part of an image that covers its bucket is kept, where it is cut here and not by the trainer.

An image overhangs its bucket on one side, on both only where `bucket_no_upscale` made the bucket to fit; the wider the
range of aspect ratios that buckets offer, the less there is to cut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from brushset.buckets import Placement, Size

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

# Windows that hold nearly as much as the best one are as good as it: the one nearest to the centre is taken.
_AS_GOOD = 0.99


def crop_to_bucket(image: Image, place: Placement, how: Literal["none", "centre", "smart"]) -> Image:
    """`image`, which has the size `place.resized`, cut to its bucket; with "none" as it is."""
    if how == "none" or image.size == place.bucket:
        return image
    width, height = place.bucket
    left, top = place.crop if how == "centre" else most_detailed(image, place.bucket)
    return image.crop((left, top, left + width, top + height))


def most_detailed(image: Image, size: Size) -> tuple[int, int]:
    """The upper left corner of the window of `size` that holds most gradient energy (sum of |dx| + |dy| of luma).

    It knows contrast and nothing else: no face, no subject, no composition. Grass, halftone, paper grain and noise are
    detail to it, so a sharp background wins over a soft subject. An even image is cut at the centre.
    """
    import numpy as np

    sums = _window_sums(_gradient_energy(image), size)
    tops, lefts = np.nonzero(sums >= _AS_GOOD * sums.max())
    centre = ((sums.shape[1] - 1) // 2, (sums.shape[0] - 1) // 2)
    nearest = int(np.argmin(np.abs(lefts - centre[0]) + np.abs(tops - centre[1])))
    return int(lefts[nearest]), int(tops[nearest])


def _gradient_energy(image: Image) -> np.ndarray:
    """float64 [H, W]."""
    import numpy as np

    luma = np.asarray(image.convert("L"), dtype=np.float64)
    energy = np.zeros_like(luma)
    energy[:, 1:] += np.abs(np.diff(luma, axis=1))
    energy[1:] += np.abs(np.diff(luma, axis=0))
    return energy


def _window_sums(values: np.ndarray, size: Size) -> np.ndarray:
    """Sums over all windows of `size`, by their upper left corners: [H - height + 1, W - width + 1]."""
    import numpy as np

    width, height = size
    integral = np.pad(values.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    rows = integral[height:] - integral[:-height]
    return np.asarray(rows[:, width:] - rows[:, :-width])
