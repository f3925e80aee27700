"""Turns the user's images into what the trainer shall see: files of ours, of one kind, named by what is in them.

A name is the first 16 hex digits of the SHA-256 of the source's bytes: a.jpg and a.png no longer share a caption or a
latent cache, byte-equal copies fall together, and quotes or newlines in a name go no further. Images are upscaled to
the training size and never scaled down: the trainer does that per bucket, once. Originals are only read.
"""

from __future__ import annotations

import io
import shutil
from functools import partial
from pathlib import Path

from PIL import Image

from brushset.errors import InputError
from brushset.files import read_json, sha256_file, shown, write_atomic
from brushset.images import CAPTION_SUFFIX, open_as_rgb, run_threads
from brushset.paths import PROJECT
from brushset.pipeline import Stage, StageContext
from brushset.records import AuditedImage, Prepared, PreparedImage
from brushset.spec import DatasetSection
from brushset.stages.audit import IMAGES_JSON

_NAME_DIGITS = 16
_JPEG_QUALITY = 95
# zlib's run-length strategy: 5.6 times as fast as Pillow's default on scanned watercolors, for files as small.
_PNG_STRATEGY = 3


def prepare_image(folder: Path, dataset: DatasetSection, target: Path, image: AuditedImage) -> PreparedImage:
    """Writes one audited image of `folder` into the folder `target`.

    Raises:
        InputError: the file is no longer the one that was audited.
    """
    source = folder / image.path
    if sha256_file(source) != image.sha256:
        raise InputError(f"{shown(source)}: changed while the run was at work; fix: start the command again")
    rgb = open_as_rgb(source, dataset.background, dataset.max_megapixels)
    factor = max(1.0, dataset.resolution / min(rgb.size))
    if factor > 1:
        width, height = (round(side * factor) for side in rgb.size)
        rgb = rgb.resize((width, height), Image.Resampling.LANCZOS)
    name = image.sha256[:_NAME_DIGITS] + (".png" if dataset.format == "png" else ".jpg")
    write_atomic(target / name, _encoded(rgb, dataset.format))
    return PreparedImage(
        name=name, source=image.path, source_sha256=image.sha256, width_px=rgb.width, height_px=rgb.height,
        upscaled_by=round(factor, 4),
    )  # fmt: skip


def _encoded(rgb: Image.Image, kind: str) -> bytes:
    content = io.BytesIO()
    if kind == "png":
        rgb.save(content, "PNG", compress_type=_PNG_STRATEGY)
    else:
        rgb.save(content, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return content.getvalue()


def _run(context: StageContext) -> Prepared:
    dataset = context.spec.dataset
    audited = [AuditedImage.model_validate(item) for item in read_json(context.run.audit / IMAGES_JSON)]
    chosen, skipped = _choose(audited)
    work = partial(prepare_image, context.spec.images_dir(PROJECT), dataset, context.workdir)
    prepared = run_threads(work, chosen, context.emit, "images prepared")
    _carry_captions(context.run.images, context.workdir, {image.source_sha256[:_NAME_DIGITS] for image in prepared})
    return Prepared(images=tuple(sorted(prepared, key=lambda image: image.name)), skipped=skipped)


def _choose(audited: list[AuditedImage]) -> tuple[list[AuditedImage], dict[str, str]]:
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


def _carry_captions(old: Path, new: Path, stems: set[str]) -> None:
    """Captions of images that stay come along: the user may have edited them."""
    for text in sorted(old.glob(f"*{CAPTION_SUFFIX}")):
        if text.stem in stems:
            shutil.copy2(text, new / text.name)


STAGE = Stage(
    name="preprocess", record=Prepared, run=_run, reads=("dataset",), needs=("audit",), output="images",
    passes_on=CAPTION_SUFFIX,
)  # fmt: skip
