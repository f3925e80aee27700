"""Writes the pair of Kohya TOMLs that both engines read, and works out how long the training will be.

Every key is held against what sd-scripts knows before a byte is written. The arithmetic is sd-scripts' own: batches
never mix buckets and a bucket's short last batch counts, so images × repeats / batch size would be wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from brushset.buckets import BucketPlan, BucketRules, batches_per_epoch, count_steps, plan_buckets, share_batches
from brushset.errors import InputError
from brushset.files import shown, toml_text, write_atomic
from brushset.kohya.check.flags import check_pair
from brushset.kohya.check.pace import pace_warning
from brushset.kohya.render import render_dataset, render_training
from brushset.listing import IMAGE_SUFFIXES
from brushset.paths import RunPaths
from brushset.pipeline import Stage, StageContext
from brushset.records import EngineConfig, Prepared, PreparedImage
from brushset.spec import StyleSpec, TrainSection

# One repeat makes half as many steps again as were aimed at.
_FAR_TOO_MANY = 2 / 3


def describe_length(train: TrainSection, batches: int) -> str:
    """How `batches` an epoch, of all processes, become optimizer steps, how many images each step sees, and over what
    the learning rate runs; one line.
    """
    shared = share_batches(batches, train.processes)
    steps, epochs = count_steps(train, shared)
    divided = f"{batches} batches an epoch"
    if train.processes > 1:
        divided += f" ÷ {train.processes} processes = {shared}"
    if train.gradient_accumulation_steps > 1:
        divided += f" ÷ {train.gradient_accumulation_steps} accumulated = {math.ceil(shared / train.gradient_accumulation_steps)}"
    effective = train.batch_size * train.processes * train.gradient_accumulation_steps
    factors = f"{train.batch_size} × {train.processes} × {train.gradient_accumulation_steps} = {effective}"
    batch = factors if effective != train.batch_size else str(effective)
    course = f"{train.lr_scheduler} over {steps} steps"
    warm_up = int(train.lr_warmup_ratio * steps)
    if warm_up and train.lr_scheduler != "constant":
        course += f", the first {warm_up} of them warm-up"
    return f"{divided} × {epochs} epochs → {steps} optimizer steps; effective batch {batch}; learning rate {course}"


def choose_repeats(train: TrainSection, images: int) -> tuple[int, str]:
    """How often an epoch shows each image, and why: what the style says, else what brings the epochs nearest to
    `target_steps`. With `max_steps` the length is settled, and repeats are 1. Where one repeat is far too many already,
    the number of epochs that would do is told: epochs are the user's to change.
    """
    if train.repeats is not None:
        return train.repeats, f"repeats {train.repeats}: as the style says"
    if train.max_steps is not None:
        return 1, f"repeats 1: max_steps = {train.max_steps} rules the length"
    batch = train.batch_size * train.processes * train.gradient_accumulation_steps
    wanted = train.target_steps * batch / (images * train.epochs)
    repeats = max(1, round(wanted))
    why = (
        f"repeats {repeats}: target_steps {train.target_steps} × batch {batch} ÷ ({images} images × "
        f"{train.epochs} epochs) = {wanted:.2f}"
    )
    if wanted < _FAR_TOO_MANY and (fewer := max(1, round(wanted * train.epochs))) < train.epochs:
        why += f", and 1 is the least; train.epochs = {fewer} would come near target_steps"
    return repeats, why


def plan_style_buckets(spec: StyleSpec, images: Sequence[PreparedImage]) -> BucketPlan:
    """The buckets of prepared images under a style's settings."""
    return plan_buckets(
        {image.name: (image.width_px, image.height_px) for image in images},
        BucketRules.of(spec),
    )


def _run(context: StageContext) -> EngineConfig:
    spec, images = context.spec, context.get(Prepared).images
    _refuse_strangers(context.run.images, images)
    _require_captions(context.run.images, images)
    if spec.train.validate_every_n_epochs:
        _require_heldout(context.run, context.get(Prepared), spec)
    repeats, why = choose_repeats(spec.train, len(images))
    dataset, training = render_dataset(spec, repeats), render_training(spec)
    check_pair(dataset, training)
    plan = plan_style_buckets(spec, images)
    batches = batches_per_epoch(plan, repeats=repeats, batch_size=spec.train.batch_size)
    shared = share_batches(batches, spec.train.processes)
    steps, epochs = count_steps(spec.train, shared)
    arithmetic = f"{why}; {describe_length(spec.train, batches)}"
    context.emit("note", text=arithmetic)
    if warning := pace_warning(spec.train):
        context.emit("warning", text=warning)
    write_atomic(context.workdir / context.run.dataset_toml.name, toml_text(dataset))
    write_atomic(context.workdir / context.run.training_toml.name, toml_text(training))
    return EngineConfig(
        engine=spec.train.engine,
        images=len(images),
        repeats=repeats,
        arithmetic=arithmetic,
        batches_per_epoch=shared,
        epochs=epochs,
        steps=steps,
        buckets={f"{width}x{height}": count for (width, height), count in plan.counts.items()},
    )


def _refuse_strangers(folder: Path, images: Sequence[PreparedImage]) -> None:
    """Trainers take every image that lies in the folder, be it held out or never audited."""
    known = {image.name for image in images}
    strangers = [path for path in sorted(folder.glob("*")) if path.suffix.lower() in IMAGE_SUFFIXES]
    findings = [
        f"{shown(path)}: not one of the {len(known)} prepared images, and would be trained on; "
        f"fix: remove it, or put it among your own images"
        for path in strangers
        if path.name not in known
    ]
    if findings:
        raise InputError.of_many(findings)


def _require_captions(folder: Path, images: Sequence[PreparedImage]) -> None:
    """A missing caption would be trained as an empty one without a word, an empty file stops sd-scripts."""
    if not images:
        raise InputError(f"{folder}: no image to train on; fix: see audit/index.html")
    findings = []
    for image in images:
        path = (folder / image.name).with_suffix(".txt")
        if not path.is_file() or not path.read_text(encoding="utf-8").strip():
            findings.append(f"{path}: no caption for {image.name}; fix: write one line, or --force caption")
    if findings:
        raise InputError.of_many(findings)


def _require_heldout(run: RunPaths, prepared: Prepared, spec: StyleSpec) -> None:
    """Without them sd-scripts would train on, validate nothing, and say nothing of it."""
    if not prepared.heldout:
        raise InputError(
            f"[train] validate_every_n_epochs = {spec.train.validate_every_n_epochs}: none of the {len(prepared.images)} "
            f"images is held out; fix: [dataset] holdout_from below that, or validate_every_n_epochs = 0"
        )
    _require_captions(run.images, prepared.heldout)


STAGE = Stage(
    name="configure",
    record=EngineConfig,
    run=_run,
    reads=("name", "trigger", "description", "base", "dataset", "train"),
    needs=("preprocess", "caption"),
    output="config",
)
