"""Images, captions, batches and the length of a run."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from native_case import SIZES, make_run, settings_of

from brushset.buckets import BucketRules, plan_buckets
from brushset.errors import InputError
from brushset.native.captions import When, full_caption, tag_frequency, vary_caption
from brushset.native.dataset import epoch_batches, plan_length, read_training_set
from brushset.native.latents import load_pixels
from brushset.native.settings import DatasetKeys, TrainingKeys

RECIPE: dict[str, Any] = {"seed": 1, "output_name": "x", "network_module": "networks.lora"}


def keys(**changes: Any) -> DatasetKeys:
    return DatasetKeys.model_validate({"image_dir": "images", "resolution": 64, **changes})


def test_images_are_read_sorted_with_their_captions(tmp_path: Path) -> None:
    images = read_training_set(settings_of(make_run(tmp_path)))
    assert [image.path.name for image in images.images] == [f"{i}.png" for i in range(5)]
    assert images.images[3].caption == "cartoonstyle, a cat, part 3"
    assert [image.size for image in images.images] == list(SIZES)


def test_what_cannot_be_trained_on_is_told_at_once(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run.images / "0.txt").unlink()
    (run.images / "1.txt").write_text("")
    (run.images / "2.txt").write_bytes(b"\xff\xfe\xfa")
    (run.images / "3.png").write_bytes(b"no image")
    (run.images / "4.txt").write_text("\na cat")
    with pytest.raises(InputError) as caught:
        read_training_set(settings_of(run))
    lines = str(caught.value).splitlines()
    expected = ("no caption 0.txt", "1.txt: is empty", "not UTF-8", "3.png: cannot be read", "4.txt: its first line is")
    assert len(lines) == 5
    for line, words in zip(lines, expected, strict=True):
        assert words in line


def test_what_is_held_out_below_the_folder_is_not_seen(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.heldout.mkdir()
    for suffix in (".png", ".txt"):
        (run.images / f"0{suffix}").rename(run.heldout / f"0{suffix}")
    assert [image.path.name for image in read_training_set(settings_of(run)).images] == [
        f"{i}.png" for i in range(1, 5)
    ]


def test_an_empty_folder_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: holds no image"):
        read_training_set(settings_of(make_run(tmp_path, {"image_dir": "nowhere"})))


def test_class_tokens_stand_in_for_a_missing_caption(tmp_path: Path) -> None:
    run = make_run(tmp_path, {"class_tokens": "cartoonstyle"})
    (run.images / "0.txt").unlink()
    assert read_training_set(settings_of(run)).images[0].caption == "cartoonstyle"


def test_an_epoch_sees_every_image_as_often_as_it_repeats_in_its_own_bucket(tmp_path: Path) -> None:
    settings = settings_of(make_run(tmp_path, {"num_repeats": 3}))
    images = read_training_set(settings)
    batches = epoch_batches(images, settings.dataset, seed=1, epoch=1)
    assert Counter(index for batch in batches for index in batch.images) == dict.fromkeys(range(5), 3)
    assert all(images.plan.assignment[f"{i}.png"] == batch.bucket for batch in batches for i in batch.images)
    assert len(batches) == plan_length(images.plan, settings.dataset, settings.training).batches_per_epoch


def test_an_epochs_order_depends_on_seed_and_epoch_alone(tmp_path: Path) -> None:
    settings = settings_of(make_run(tmp_path, {"num_repeats": 4}))
    images = read_training_set(settings)
    first = epoch_batches(images, settings.dataset, seed=1, epoch=1)
    assert first == epoch_batches(images, settings.dataset, seed=1, epoch=1)
    assert first != epoch_batches(images, settings.dataset, seed=1, epoch=2)
    assert first != epoch_batches(images, settings.dataset, seed=2, epoch=1)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ({"max_train_epochs": 3}, (3, 3, 3, 9)),
        ({"max_train_epochs": 3, "gradient_accumulation_steps": 2}, (3, 2, 3, 6)),
        ({"max_train_steps": 7}, (3, 3, 3, 7)),
        ({"max_train_steps": 7, "max_train_epochs": 1}, (3, 3, 1, 3)),
        ({"max_train_steps": 6, "gradient_accumulation_steps": 4}, (3, 1, 6, 6)),
    ],
)
def test_a_runs_length_is_sd_scripts_arithmetic(recipe: dict[str, Any], expected: tuple[int, ...]) -> None:
    sizes = {**{f"a{i}": (64, 64) for i in range(5)}, "wide": (300, 100)}
    plan = plan_buckets(sizes, BucketRules(128, 64, 256, 64, no_upscale=False, enable=True))
    assert sorted(plan.counts.values()) == [1, 5]
    length = plan_length(plan, keys(batch_size=3), TrainingKeys.model_validate({**RECIPE, **recipe}))
    assert (length.batches_per_epoch, length.steps_per_epoch, length.epochs, length.steps) == expected


def test_kept_parts_stay_in_front_of_shuffled_ones() -> None:
    rng = random.Random(0)
    made = [
        vary_caption("trigger, a,b , c", keys(shuffle_caption=True, keep_tokens=1), rng, When()) for _ in range(200)
    ]
    assert all(caption.startswith("trigger, ") for caption in made)
    assert len(set(made)) == 6


def test_an_unshuffled_caption_is_left_as_it_is() -> None:
    assert vary_caption("trigger,a ,  b", keys(), random.Random(0), When()) == "trigger,a ,  b"


def test_captions_are_dropped_at_the_given_rate() -> None:
    rng = random.Random(5)
    dropped = sum(not vary_caption("x", keys(caption_dropout_rate=0.2), rng, When()) for _ in range(10_000))
    assert dropped == pytest.approx(2000, abs=160)  # four standard deviations


def test_prefix_and_suffix_are_joined_by_a_space() -> None:
    assert full_caption("a cat", keys(caption_prefix="style,", caption_suffix="end")) == "style, a cat end"


def test_tags_are_counted_lower_cased_and_stripped() -> None:
    assert tag_frequency(["Style, a cat", "style ,,a dog"]) == {"style": 2, "a cat": 1, "a dog": 1}


def test_pixels_are_scaled_to_cover_and_cut_at_the_centre(tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    pixels = np.zeros((100, 300, 3), dtype=np.uint8)
    pixels[:, 100:200] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    rules = BucketRules(64, 64, 64, 64, no_upscale=False, enable=False)
    place = plan_buckets({"a": (300, 100)}, rules).placements["a"]
    made = load_pixels(tmp_path / "a.png", place)
    assert made.shape == (3, 64, 64)
    assert made.min() >= -1
    assert made[:, :, 2:62].min() > 0.95  # the white third alone is left
    assert made.max() <= 1


def test_without_scaling_pixels_are_the_files(tmp_path: Path) -> None:
    import numpy as np
    import torch
    from PIL import Image

    run = make_run(tmp_path)
    images = read_training_set(settings_of(run))
    made = load_pixels(run.images / "0.png", images.plan.placements["0.png"])
    with Image.open(run.images / "0.png") as opened:
        expected = torch.from_numpy(np.array(opened)).permute(2, 0, 1) / 255 * 2 - 1
    assert torch.allclose(made, expected, atol=1e-6)


def test_an_image_that_is_too_small_is_scaled_up(tmp_path: Path) -> None:
    run = make_run(tmp_path, {"resolution": 128})
    images = read_training_set(settings_of(run))
    made = load_pixels(run.images / "0.png", images.plan.placements["0.png"])
    assert made.shape == (3, 128, 128)
    assert made.flatten().unique().numel() > 100
