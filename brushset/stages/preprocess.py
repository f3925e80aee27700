"""Turns the user's images into what the trainer shall see: files of ours, of one kind, at the size of their buckets.

From `holdout_from` images up some are held out: written beside the others, in a folder that no trainer looks into, and
sealed by the hashes of their sources. Originals are only read.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from brushset.audit.result import read_audited_images
from brushset.buckets import BUCKET_KEYS, BucketRules
from brushset.images import CAPTION_SUFFIX, run_threads
from brushset.paths import PROJECT, RunPaths
from brushset.pipeline import Stage, StageContext
from brushset.prepare.holdout import choose_heldout, seal_of
from brushset.prepare.image import Enlarge, Recipe, enlarge_by_lanczos, prepare_image
from brushset.prepare.upscale import load_upscaler, upscaler_digest, upscaler_path
from brushset.protocols import Emit
from brushset.records import AuditedImage, Prepared, PreparedImage
from brushset.spec import DatasetSection, StyleSpec


def _run(context: StageContext) -> Prepared:
    dataset = context.spec.dataset
    chosen, skipped = _choose(read_audited_images(context.run.audit))
    heldout = choose_heldout(chosen, dataset)
    recipe = Recipe(
        folder=context.spec.images_dir(PROJECT),
        target=context.workdir,
        dataset=dataset,
        rules=BucketRules.of(context.spec),
        enlarge=_choose_enlarge(dataset, chosen, context.emit),
    )

    def work(image: AuditedImage) -> PreparedImage:
        return prepare_image(recipe, image, held_out=image.sha256 in heldout)

    made = sorted(run_threads(work, chosen, context.emit, "images prepared"), key=lambda image: image.name)
    _carry_captions(context.run, context.workdir, made)
    held = tuple(image for image in made if image.source_sha256 in heldout)
    trained = tuple(image for image in made if image.source_sha256 not in heldout)
    prepared = Prepared(images=trained, heldout=held, seal=seal_of(held), skipped=skipped)
    context.emit("note", text=describe(prepared, dataset))
    return prepared


def describe(prepared: Prepared, dataset: DatasetSection) -> str:
    """What became of the images, one line."""
    parts = [f"{len(prepared.images)} images to train on"]
    if prepared.heldout:
        parts.append(f"{len(prepared.heldout)} held out for evaluation")
    factors = [image.upscaled_by for image in (*prepared.images, *prepared.heldout) if image.upscaled_by > 1]
    if factors:
        by = "Lanczos" if dataset.upscaler == "lanczos" else Path(dataset.upscaler).stem
        parts.append(f"{len(factors)} enlarged by {by}, {max(factors):.2f} times at most")
    if prepared.skipped:
        parts.append(f"{len(prepared.skipped)} left out")
    return ", ".join(parts)


def _choose(audited: Sequence[AuditedImage]) -> tuple[list[AuditedImage], dict[str, str]]:
    """The images to prepare, each content once, and the others with the reason."""
    first: dict[str, AuditedImage] = {}
    skipped = {}
    for image in audited:
        if image.verdict == "unusable":
            skipped[image.path] = image.reason
        elif image.sha256 in first:
            skipped[image.path] = f"the same bytes as {first[image.sha256].path}"
        else:
            first[image.sha256] = image
    return list(first.values()), skipped


def _choose_enlarge(dataset: DatasetSection, images: Sequence[AuditedImage], emit: Emit) -> Enlarge:
    """The style's upscaler; a model is loaded only where there is an image for it."""
    path = upscaler_path(dataset, PROJECT)
    if path is None or all(image.enlarged_by <= 1 for image in images):
        return enlarge_by_lanczos
    upscaler = load_upscaler(path, emit)
    emit("note", text=f"small images are enlarged by {upscaler.name} on {upscaler.device}")
    return upscaler


def _carry_captions(run: RunPaths, target: Path, images: Sequence[PreparedImage]) -> None:
    """Captions of images that stay come along, held out or no longer: the user may have edited them."""
    places = {Path(image.name).stem: target / Path(image.name).with_suffix(CAPTION_SUFFIX) for image in images}
    for text in sorted([*run.images.glob(f"*{CAPTION_SUFFIX}"), *run.heldout.glob(f"*{CAPTION_SUFFIX}")]):
        if text.stem in places:
            shutil.copy2(text, places[text.stem])


def _outside(spec: StyleSpec, _run: RunPaths) -> object:
    return {"upscaler": upscaler_digest(upscaler_path(spec.dataset, PROJECT))}


STAGE = Stage(
    name="preprocess", record=Prepared, run=_run, reads=("dataset", *BUCKET_KEYS), needs=("audit",), output="images",
    outside=_outside, passes_on=CAPTION_SUFFIX, version=2,
)  # fmt: skip
