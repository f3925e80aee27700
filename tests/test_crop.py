"""The cut to the bucket: at the centre, or where most detail is."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from brushset.buckets import Placement, Size
from brushset.prepare.crop import crop_to_bucket, most_detailed


def busy(size: Size, box: tuple[int, int, int, int]) -> Image.Image:
    """Grey, with noise inside `box`."""
    pixels = np.full((size[1], size[0], 3), 128, np.uint8)
    left, top, right, bottom = box
    pixels[top:bottom, left:right] = np.random.default_rng(0).integers(0, 256, (bottom - top, right - left, 1))
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("size", "box", "window"),
    [
        ((512, 256), (300, 20, 500, 200), (256, 256)),
        ((512, 256), (10, 20, 90, 200), (256, 256)),
        ((300, 700), (20, 600, 280, 690), (300, 256)),
        ((640, 400), (400, 250, 600, 380), (256, 192)),
    ],
)
def test_the_smart_window_holds_the_detail(size: Size, box: tuple[int, int, int, int], window: Size) -> None:
    left, top = most_detailed(busy(size, box), window)
    assert left <= box[0]
    assert top <= box[1]
    slack = 4  # a hundredth of the detail may be lost for a place nearer to the centre
    assert left + window[0] >= box[2] - slack
    assert top + window[1] >= box[3] - slack


def test_the_smart_window_is_the_best_of_all() -> None:
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 60), dtype=np.uint8)).convert("RGB")
    luma = np.asarray(picture.convert("L"), np.int64)
    energy = np.zeros_like(luma)
    energy[:, 1:] += abs(np.diff(luma, axis=1))
    energy[1:] += abs(np.diff(luma, axis=0))
    sums = {
        (left, top): energy[top : top + 32, left : left + 32].sum() for left in range(60 - 31) for top in range(40 - 31)
    }
    assert sums[most_detailed(picture, (32, 32))] >= 0.99 * max(sums.values())


def test_an_even_image_and_even_detail_are_cut_at_the_centre() -> None:
    assert most_detailed(Image.new("RGB", (300, 200)), (200, 200)) == (50, 0)
    left, _ = most_detailed(busy((301, 200), (0, 0, 301, 200)), (200, 200))
    assert 30 <= left <= 70


def test_the_cut_is_the_bucket_whatever_way() -> None:
    picture = busy((320, 256), (240, 0, 320, 256))
    pixels = np.asarray(picture)
    place = Placement((256, 256), (320, 256), (32, 0), 0.0)
    assert crop_to_bucket(picture, place, "none") is picture
    assert np.array_equal(np.asarray(crop_to_bucket(picture, place, "centre")), pixels[:, 32:288])
    assert np.array_equal(np.asarray(crop_to_bucket(picture, place, "smart")), pixels[:, 64:])
