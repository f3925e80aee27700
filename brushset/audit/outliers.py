"""Which images differ from the rest of their set: in size, shape, sharpness or brightness.

By the distance to the median in robust standard deviations (1.4826 × the median absolute deviation; Iglewicz and
Hoaglin, How to Detect and Handle Outliers, 1993), on logarithms where the quantity is a ratio. Art varies: what must
differ by a factor that the eye sees too, and small sets have no rest to differ from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from brushset.records import AuditedImage, Measures

LEAST_IMAGES = 20
_SIGMA_OF_MAD = 1.4826


@dataclass(frozen=True)
class _Quantity:
    """`floor`: what a person would call different, in the quantity's own (logarithmic) unit."""

    value: Callable[[AuditedImage, Measures], float]
    floor: float
    describe: Callable[[float, float], str]


_QUANTITIES = (
    _Quantity(
        lambda image, _: math.log(image.width_px * image.height_px) / 2, math.log(4),
        lambda value, median: f"{math.exp(value - median):.2g} times the set's usual size",
    ),
    _Quantity(
        lambda image, _: math.log(image.width_px / image.height_px), math.log(2),
        lambda value, median: f"{math.exp(value):.2f} wide to 1 high; the set's median is {math.exp(median):.2f}",
    ),
    _Quantity(
        lambda _, measures: math.log(measures.sharpness + 1), math.log(5),
        lambda value, median: f"sharpness {math.exp(value) - 1:.0f}; the set's median is {math.exp(median) - 1:.0f}",
    ),
    _Quantity(
        lambda _, measures: measures.mean_luma, 0.3,
        lambda value, median: f"mean brightness {value:.0%}; the set's median is {median:.0%}",
    ),
)  # fmt: skip


def find_outliers(images: Sequence[AuditedImage], deviations: float) -> dict[str, str]:
    """Path → in what an image differs, among those that can be seen and show something."""
    import numpy as np

    seen = [(image, image.measures) for image in images if image.measures and not image.measures.uniform]
    if len(seen) < LEAST_IMAGES:
        return {}
    found: dict[str, str] = {}
    for quantity in _QUANTITIES:
        values = np.array([quantity.value(image, measures) for image, measures in seen])
        median = float(np.median(values))
        distance = np.abs(values - median)
        limit = max(deviations * _SIGMA_OF_MAD * float(np.median(distance)), quantity.floor)
        for index in np.flatnonzero(distance > limit):
            path = seen[index][0].path
            text = quantity.describe(float(values[index]), median)
            found[path] = f"{found[path]}; {text}" if path in found else text
    return found
