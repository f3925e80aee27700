"""Can these images be trained on? Every file is decoded as preprocess will decode it; nothing of the user's is touched.

The thresholds, in one place:
    an image is unusable        where it cannot be decoded, or its shorter side would be enlarged by more than [dataset] max_upscale
    an image needs upscaling    where its shorter side is below [dataset] resolution
    a set is unusable           where no image is usable, or more than half of them are not: the run stops here
    a set has too few           where fewer than [dataset] min_images different usable images are left: said, not refused
    a set needs upscaling       where more than half of its usable images do
The first that holds, in this order, is the set's verdict; `reasons` states all that was found.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from brushset.errors import InputError
from brushset.files import one_line, shown, write_json
from brushset.images import (
    UnusableImage,
    digest_or_unreadable,
    list_source_images,
    open_image,
    run_threads,
    sidecar_of,
    source_digest,
)
from brushset.paths import PROJECT, RunPaths
from brushset.pipeline import Stage, StageContext
from brushset.protocols import Emit
from brushset.records import Audit, AuditedImage, ImageVerdict, SetVerdict
from brushset.spec import DatasetSection, StyleSpec

IMAGES_JSON = "images.json"
MOST = 0.5

_NAMED_AT_MOST = 5


def audit_folder(folder: Path, dataset: DatasetSection, emit: Emit) -> tuple[Audit, list[AuditedImage]]:
    """Looks at every image below `folder`; reads only.

    Raises:
        InputError: the folder is not there or cannot be read. Bad images raise nothing: they are in the result.
    """
    paths = list_source_images(folder)
    images = run_threads(partial(_audit_image, folder, dataset), paths, emit, "images looked at")
    with_sidecar = sum(sidecar_of(path).is_file() for path in paths)
    return _summarise(folder, dataset, images, with_sidecar), images


def _audit_image(folder: Path, dataset: DatasetSection, path: Path) -> AuditedImage:
    sha256 = digest_or_unreadable(path)
    name = path.relative_to(folder).as_posix()
    try:
        opened = open_image(path, dataset.background, dataset.max_megapixels)
    except UnusableImage as error:
        size_bytes = path.stat().st_size if path.exists() else 0
        return AuditedImage(
            path=name, sha256=sha256, size_bytes=size_bytes, format="", mode="", width_px=0, height_px=0,
            verdict="unusable", reason=error.reason,
        )  # fmt: skip
    width, height = opened.rgb.size
    verdict, reason = _verdict_of_size(min(width, height), dataset)
    return AuditedImage(
        path=name, sha256=sha256, size_bytes=path.stat().st_size, format=opened.format, mode=opened.mode,
        width_px=width, height_px=height, verdict=verdict, reason=reason or opened.note,
    )  # fmt: skip


def _least_side(dataset: DatasetSection) -> int:
    return math.ceil(dataset.resolution / dataset.max_upscale)


def _verdict_of_size(side_px: int, dataset: DatasetSection) -> tuple[ImageVerdict, str]:
    if side_px < _least_side(dataset):
        return (
            "unusable",
            f"shorter side {side_px} px is below {_least_side(dataset)}: [dataset] max_upscale = {dataset.max_upscale:g}",
        )
    if side_px < dataset.resolution:
        return "needs upscaling", f"shorter side {side_px} px is below [dataset] resolution = {dataset.resolution}"
    return "ok", ""


def _summarise(folder: Path, dataset: DatasetSection, images: Sequence[AuditedImage], with_sidecar: int) -> Audit:
    verdicts = Counter(image.verdict for image in images)
    sides = [min(image.width_px, image.height_px) for image in images if image.width_px] or [0]
    return Audit(
        folder=str(folder.resolve()),
        found=len(images),
        ok=verdicts["ok"],
        needs_upscaling=verdicts["needs upscaling"],
        unusable=verdicts["unusable"],
        verdict=_verdict_of_set(images, dataset),
        reasons=tuple(_reasons(folder, images, dataset)),
        formats=dict(sorted(Counter(image.format or "none" for image in images).items())),
        min_side_px=min(sides),
        median_side_px=round(statistics.median(sides)),
        max_side_px=max(sides),
        with_sidecar=with_sidecar,
    )


def _verdict_of_set(images: Sequence[AuditedImage], dataset: DatasetSection) -> SetVerdict:
    usable = [image for image in images if image.verdict != "unusable"]
    if not usable or len(images) - len(usable) > MOST * len(images):
        return "unusable"
    if _different(usable) < dataset.min_images:
        return "too few"
    small = sum(image.verdict == "needs upscaling" for image in usable)
    return "needs upscaling" if small > MOST * len(usable) else "ok"


def _reasons(folder: Path, images: Sequence[AuditedImage], dataset: DatasetSection) -> list[str]:
    """All findings, a line each, with the fix."""
    usable = [image for image in images if image.verdict != "unusable"]
    damaged = [image for image in images if not image.width_px]
    small = [image for image in images if image.verdict == "unusable" and image.width_px]
    enlarged = [image for image in usable if image.verdict == "needs upscaling"]
    guessed = [image for image in usable if image.verdict == "ok" and image.reason]
    found = []
    if not images:
        found.append(f"{shown(folder)}: no image in it; fix: put the images there or pass --images DIR")
    if damaged:
        why = "; ".join(f"{one_line(image.path)}: {image.reason}" for image in damaged[:_NAMED_AT_MOST])
        found.append(f"{len(damaged)} cannot be used: {why}{_and_more(damaged)}; fix: replace or remove them")
    if small:
        found.append(
            f"{len(small)} smaller than {_least_side(dataset)}: [dataset] max_upscale = {dataset.max_upscale:g} px: {_names(small)}; "
            f"fix: find larger copies, or remove them"
        )
    if images and _different(usable) < dataset.min_images:
        found.append(
            f"{_different(usable)} different usable images, [dataset] min_images = {dataset.min_images} are advised; "
            f"fix: add images, or expect a style that is learned less surely"
        )
    if enlarged:
        found.append(
            f"{len(enlarged)} of {len(usable)} usable images are smaller than {dataset.resolution} px and will be "
            f"upscaled; fix: use larger originals where there are any"
        )
    if copies := len(usable) - _different(usable):
        found.append(f"{copies} byte-equal copies; each image is used once; fix: none needed")
    if guessed:
        why = "; ".join(f"{one_line(image.path)}: {image.reason}" for image in guessed[:_NAMED_AT_MOST])
        found.append(f"{len(guessed)} decoded with a guess: {why}{_and_more(guessed)}; fix: save them as sRGB PNG")
    return found


def _different(images: Sequence[AuditedImage]) -> int:
    return len({image.sha256 for image in images})


def _names(images: Sequence[AuditedImage]) -> str:
    return ", ".join(one_line(image.path) for image in images[:_NAMED_AT_MOST]) + _and_more(images)


def _and_more(images: Sequence[AuditedImage]) -> str:
    return f" and {len(images) - _NAMED_AT_MOST} more" if len(images) > _NAMED_AT_MOST else ""


def _run(context: StageContext) -> Audit:
    folder = context.spec.images_dir(PROJECT)
    audit, images = audit_folder(folder, context.spec.dataset, context.emit)
    if audit.verdict == "unusable":
        counts = (
            f"{shown(folder)}: {audit.unusable} of {audit.found} images cannot be trained on; fix: see the lines below"
        )
        raise InputError.of_many([counts, *audit.reasons] if images else audit.reasons)
    write_json(context.workdir / IMAGES_JSON, [image.model_dump(mode="json") for image in images])
    return audit


def _outside(spec: StyleSpec, _run: RunPaths) -> object:
    """The images' bytes, and which captions there are but not what they say: a changed caption re-does no image."""
    folder = spec.images_dir(PROJECT)
    digests = source_digest(folder)
    images = {path.relative_to(folder).as_posix() for path in list_source_images(folder)}
    return {path: digest if path in images else "" for path, digest in digests.items()}


STAGE = Stage(name="audit", record=Audit, run=_run, reads=("dataset",), outside=_outside, output="audit")
