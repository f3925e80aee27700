"""What does the trainer see of the images, in which batches, with which words?

Order and words come from generators seeded by (seed, purpose, number) alone: epoch 7 is shuffled the same way whether
the run came there in one go or not. Batches are index lists: pixels are encoded once (brushset.native.latents).
"""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass
from pathlib import Path

from brushset.buckets import BucketPlan, BucketRules, Size, batches_per_epoch, plan_buckets
from brushset.errors import InputError
from brushset.native.settings import DatasetKeys, NativeSettings, TrainingKeys

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
"""What sd-scripts globs for, in lower or upper case."""


@dataclass(frozen=True)
class TrainingImage:
    """One image file and the caption beside it."""

    path: Path
    caption: str
    size: Size


@dataclass(frozen=True)
class TrainingSet:
    """All images, sorted by name, and their buckets."""

    images: tuple[TrainingImage, ...]
    plan: BucketPlan

    def members(self, bucket: Size) -> list[int]:
        """Indices of the images in a bucket, ascending."""
        return [i for i, image in enumerate(self.images) if self.plan.assignment[image.path.name] == bucket]


@dataclass(frozen=True)
class Batch:
    """Indices into TrainingSet.images, all of one bucket."""

    bucket: Size
    images: tuple[int, ...]


@dataclass(frozen=True)
class Length:
    """How long a run is: one step is one update of the weights."""

    batches_per_epoch: int
    steps_per_epoch: int
    epochs: int
    steps: int


def derive_seed(seed: int, purpose: str, number: int = 0) -> int:
    """A 63-bit seed for one purpose, independent of all others."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def read_training_set(settings: NativeSettings) -> TrainingSet:
    """Reads sizes and captions, and assigns buckets. See read_images."""
    return read_images(settings.image_dir, settings.dataset)


def read_heldout(settings: NativeSettings) -> TrainingSet | None:
    """The images that are validated on, where there are any. See read_images."""
    keys = settings.heldout
    return read_images(settings.root / keys.image_dir, keys) if keys else None


def read_images(folder: Path, keys: DatasetKeys) -> TrainingSet:
    """Reads sizes and captions, and assigns buckets.

    Raises:
        InputError: no images, unreadable ones, or missing, empty or non-UTF-8 captions; a line each.
    """
    paths = sorted(path for path in folder.glob("*") if path.suffix in _suffixes()) if folder.is_dir() else []
    if not paths:
        raise InputError(f"{folder}: holds no image to train on ({', '.join(IMAGE_SUFFIXES)})")
    images, findings = [], []
    for path in paths:
        try:
            images.append(TrainingImage(path, _read_caption(path, keys), _read_size(path)))
        except InputError as error:  # noqa: PERF203 - all findings are told at once
            findings.append(str(error))
    if findings:
        raise InputError.of_many(findings)
    plan = plan_buckets(
        {image.path.name: image.size for image in images},
        BucketRules(
            resolution=keys.resolution,
            min_reso=keys.min_bucket_reso,
            max_reso=keys.max_bucket_reso,
            step=keys.bucket_reso_steps,
            no_upscale=keys.bucket_no_upscale,
            enable=keys.enable_bucket,
        ),
    )
    return TrainingSet(tuple(images), plan)


def plan_length(plan: BucketPlan, dataset: DatasetKeys, training: TrainingKeys) -> Length:
    """The length of a run. Epochs win over steps; an epoch's last, short group of batches is an update too."""
    batches = batches_per_epoch(plan, repeats=dataset.num_repeats, batch_size=dataset.batch_size)
    per_epoch = math.ceil(batches / training.gradient_accumulation_steps)
    if training.max_train_epochs is None:
        steps = training.max_train_steps
        return Length(batches, per_epoch, math.ceil(steps / per_epoch), steps)
    return Length(batches, per_epoch, training.max_train_epochs, training.max_train_epochs * per_epoch)


def epoch_batches(images: TrainingSet, keys: DatasetKeys, *, seed: int, epoch: int) -> list[Batch]:
    """All batches of one epoch: each bucket shuffled and cut, its short batch kept, then the batches shuffled."""
    rng = random.Random(derive_seed(seed, "order", epoch))
    batches = []
    for bucket in images.plan.counts:
        members = images.members(bucket) * keys.num_repeats
        rng.shuffle(members)
        starts = range(0, len(members), keys.batch_size)
        batches += [Batch(bucket, tuple(members[start : start + keys.batch_size])) for start in starts]
    rng.shuffle(batches)
    return batches


def _suffixes() -> set[str]:
    return {*IMAGE_SUFFIXES, *(suffix.upper() for suffix in IMAGE_SUFFIXES)}


def _read_size(path: Path) -> Size:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.size
    except OSError as error:
        raise InputError(f"{path}: cannot be read as an image: {error}; remove or replace it") from error


def _read_caption(path: Path, keys: DatasetKeys) -> str:
    """The first line of the file beside the image, all lines of wildcards, else class_tokens."""
    file = path.with_suffix("." + keys.caption_extension.removeprefix("."))
    if not file.is_file():
        if keys.class_tokens is None:
            raise InputError(f"{path}: has no caption {file.name}; write one, or set class_tokens")
        return keys.class_tokens
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: is not UTF-8; save it as UTF-8") from error
    if not text:
        raise InputError(f"{file}: is empty; write a caption, or remove the file")
    lines = [line.strip() for line in text.split("\n")]
    caption = "\n".join(filter(None, lines)) if keys.enable_wildcard else lines[0]
    if not caption:
        raise InputError(f"{file}: its first line is empty, and no other is read; write the caption there")
    return caption
