"""Writes the pair of Kohya TOMLs that both engines read, and works out how long the training will be.

Every key is held against what sd-scripts knows before a byte is written. The arithmetic is sd-scripts' own: batches
never mix buckets and a bucket's short last batch counts, so images × repeats / batch size would be wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from brushset.buckets import BucketPlan, BucketRules, batches_per_epoch, plan_buckets
from brushset.errors import InputError
from brushset.files import toml_text, write_atomic
from brushset.kohya.flags import check_pair
from brushset.kohya.render import render_dataset, render_training
from brushset.pipeline import Stage, StageContext
from brushset.records import EngineConfig, Prepared, PreparedImage
from brushset.spec import StyleSpec, TrainSection


def count_steps(train: TrainSection, batches: int) -> tuple[int, int]:
    """Optimizer steps and epochs of a training with so many batches an epoch; the last epoch may be cut short."""
    per_epoch = math.ceil(batches / train.gradient_accumulation_steps)
    if train.max_steps is None:
        return train.epochs * per_epoch, train.epochs
    return train.max_steps, math.ceil(train.max_steps / per_epoch)


def choose_repeats(train: TrainSection, images: int) -> tuple[int, str]:
    """How often an epoch shows each image, and why: what the style says, else what brings the epochs nearest to
    `target_steps`. With `max_steps` the length is settled, and repeats are 1.
    """
    if train.repeats is not None:
        return train.repeats, f"repeats {train.repeats}: as the style says"
    if train.max_steps is not None:
        return 1, f"repeats 1: max_steps = {train.max_steps} rules the length"
    batch = train.batch_size * train.gradient_accumulation_steps
    wanted = train.target_steps * batch / (images * train.epochs)
    return max(1, round(wanted)), (
        f"repeats {max(1, round(wanted))}: target_steps {train.target_steps} × batch {batch} ÷ ({images} images × "
        f"{train.epochs} epochs) = {wanted:.2f}"
    )


def plan_style_buckets(spec: StyleSpec, images: Sequence[PreparedImage]) -> BucketPlan:
    """The buckets of prepared images under a style's settings."""
    return plan_buckets(
        {image.name: (image.width_px, image.height_px) for image in images},
        BucketRules.of(spec),
    )


def _run(context: StageContext) -> EngineConfig:
    spec, images = context.spec, context.get(Prepared).images
    _require_captions(context.run.images, images)
    repeats, why = choose_repeats(spec.train, len(images))
    dataset, training = render_dataset(spec, repeats), render_training(spec)
    check_pair(dataset, training)
    plan = plan_style_buckets(spec, images)
    batches = batches_per_epoch(plan, repeats=repeats, batch_size=spec.train.batch_size)
    steps, epochs = count_steps(spec.train, batches)
    arithmetic = f"{why}; {batches} batches an epoch × {epochs} epochs → {steps} optimizer steps"
    context.emit("note", text=arithmetic)
    write_atomic(context.workdir / context.run.dataset_toml.name, toml_text(dataset))
    write_atomic(context.workdir / context.run.training_toml.name, toml_text(training))
    return EngineConfig(
        engine=spec.train.engine,
        images=len(images),
        repeats=repeats,
        arithmetic=arithmetic,
        batches_per_epoch=batches,
        epochs=epochs,
        steps=steps,
        buckets={f"{width}x{height}": count for (width, height), count in plan.counts.items()},
    )


def _require_captions(folder: Path, images: Sequence[PreparedImage]) -> None:
    """A missing caption would be trained as an empty one without a word, an empty file stops sd-scripts."""
    if not images:
        raise InputError(f"{folder}: no image to train on; fix: see audit/images.json")
    findings = []
    for image in images:
        path = (folder / image.name).with_suffix(".txt")
        if not path.is_file() or not path.read_text(encoding="utf-8").strip():
            findings.append(f"{path}: no caption for {image.name}; fix: write one line, or --force caption")
    if findings:
        raise InputError.of_many(findings)


STAGE = Stage(
    name="configure",
    record=EngineConfig,
    run=_run,
    reads=("name", "trigger", "description", "base", "dataset", "train"),
    needs=("preprocess", "caption"),
    output="config",
)
