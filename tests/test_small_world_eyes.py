"""The small world's extractors see what they are taken to see, on pictures that they were not taught on."""

from __future__ import annotations

import random

import numpy as np
import pytest

from eval.embedder import Embedder
from eval.frames import Frame
from eval.lpips import PairDistances
from eval.style_classes import LEAST_AUC, pair_auc
from small_world.draw import draw_scene
from small_world.embedder import small_extractors
from small_world.eyes import LOOKS, look, read_caption
from small_world.measure import prompts
from small_world.styles import STYLES, Picture, make_style, plain

SETS = ("plain", *STYLES)


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[Picture]]:
    return {name: make_style(name, 16, 77_000) for name in SETS}


def vectors(name: str, drawn: dict[str, list[Picture]]) -> tuple[np.ndarray, np.ndarray]:
    embedder = small_extractors()[name]
    assert isinstance(embedder, Embedder)
    assert embedder.meaningful
    rows = [embedder.encode_images([each.image for each in pictures]) for pictures in drawn.values()]
    return np.concatenate(rows), np.repeat(np.arange(len(rows)), [len(part) for part in rows])


def test_the_eye_for_style_tells_every_two_styles_apart(drawn: dict[str, list[Picture]]) -> None:
    rows, labels = vectors("csd", drawn)
    for one in range(len(SETS)):
        for other in range(one):
            chosen = (labels == one) | (labels == other)
            found = pair_auc(rows[chosen] @ rows[chosen].T, labels[chosen])
            assert found > 0.97, (SETS[one], SETS[other])


def test_the_eye_for_content_tells_no_styles_apart(drawn: dict[str, list[Picture]]) -> None:
    rows, labels = vectors("clip", drawn)
    assert pair_auc(rows @ rows.T, labels) < LEAST_AUC


def test_a_caption_agrees_with_its_own_picture_more_than_with_others_in_every_style(
    drawn: dict[str, list[Picture]],
) -> None:
    clip = small_extractors()["clip"]
    assert isinstance(clip, Embedder)
    for name, pictures in drawn.items():
        agreement = (
            clip.encode_texts([each.caption for each in pictures])
            @ clip.encode_images([each.image for each in pictures]).T
        )
        assert np.diag(agreement).mean() > agreement.mean() + 0.5, name
        assert (agreement.argmax(axis=1) == np.arange(len(pictures))).mean() > 0.7, name


def test_half_a_style_is_seen_as_half() -> None:
    from PIL import Image

    scenes = [draw_scene(random.Random(seed)) for seed in range(8)]
    for name, draw in STYLES.items():
        amounts = [
            float(
                look([Image.blend(plain(scene), draw(scene), share) for scene in scenes])
                .looks[:, LOOKS.index(name)]
                .mean()
            )
            for share in (0.0, 0.5, 1.0)
        ]
        assert amounts == pytest.approx([0.0, 0.5, 1.0], abs=0.2), name


def test_captions_are_read_as_they_are_written(drawn: dict[str, list[Picture]]) -> None:
    for caption in prompts(8):
        assert None not in read_caption(f"hatchwyn, {caption}").values()
    assert set(read_caption("a portrait of a girl").values()) == {None}


def test_pairs_of_one_picture_are_nearer_than_pairs_of_two(drawn: dict[str, list[Picture]]) -> None:
    lpips = small_extractors()["lpips"]
    assert isinstance(lpips, PairDistances)
    images = [Frame.of(each.image) for each in drawn["plain"][:4]]
    same, other = [images[0], images[0]], images[:2]
    assert lpips.within_prompts(same, [0, 0]).max() == 0
    assert lpips.within_prompts(other, [0, 0]).min() > 0.1
