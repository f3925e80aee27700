"""From a folder to its audit: list, measure, place in buckets, group duplicates, judge. Reads only.

A set of 100,000 images holds one record an image in memory, never pixels; thumbnails of a set too large to be shown
whole are made afterwards, of those that findings concern.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from brushset.audit.codes import CODES, check_accepted
from brushset.audit.duplicates import group_duplicates
from brushset.audit.judge import Placer, judge_image
from brushset.audit.measure import MeasureLimits
from brushset.audit.outliers import find_outliers
from brushset.audit.pool import measure_all
from brushset.audit.result import AuditResult
from brushset.audit.settings import AuditSettings
from brushset.audit.summary import Set, summarise
from brushset.files import one_line
from brushset.images import sidecar_of
from brushset.listing import list_folder
from brushset.log import silent
from brushset.protocols import Emit
from brushset.records import AuditedImage, DuplicateGroup

SHOWN_IMAGES = 600


def audit_folder(folder: Path, settings: AuditSettings, emit: Emit) -> AuditResult:
    """Looks at every image below `folder`.

    Raises:
        InputError: the folder is not there or cannot be read. Bad images raise nothing: they are in the result.
        UsageError: dataset.accept names a finding that there is none of.
        EnvironmentProblem: a process died while it read an image.
    """
    check_accepted(settings.dataset)
    listing = list_folder(folder)
    limits = MeasureLimits(
        settings.dataset.background, settings.dataset.max_megapixels, thumbnail=len(listing.images) <= SHOWN_IMAGES
    )
    placer = Placer(settings)
    images: list[AuditedImage] = []
    thumbnails: dict[str, bytes] = {}
    for path, measured in zip(listing.images, measure_all(listing.images, limits, emit, settings.workers), strict=True):
        image = judge_image(path.relative_to(folder).as_posix(), measured, placer)
        images.append(image)
        if measured.thumbnail:
            thumbnails[image.path] = measured.thumbnail
    groups = group_duplicates(images, settings.dataset.near_duplicate_distance)
    images = _compare(images, groups, settings.dataset.outlier_deviations)
    captions = frozenset(
        image.path for path, image in zip(listing.images, images, strict=True) if sidecar_of(path).is_file()
    )
    audit = summarise(Set(folder, settings.dataset, images, groups, captions, listing.left_out))
    if not limits.thumbnail:
        thumbnails = _thumbnails_of_found(folder, images, limits, settings.workers)
    return AuditResult(audit, images, groups, thumbnails)


def _compare(images: Sequence[AuditedImage], groups: Sequence[DuplicateGroup], deviations: float) -> list[AuditedImage]:
    """The images with what is found only beside the others: their groups, their copies, how they differ."""
    found: dict[str, dict[str, str]] = {
        path: {"outlier": text} for path, text in find_outliers(images, deviations).items()
    }
    by_path = {path: group for group in groups for path in group.images}
    first: dict[str, str] = {}
    for image in images:
        if image.path not in by_path:
            continue
        group = by_path[image.path]
        mine = found.setdefault(image.path, {})
        if image.sha256 in first:
            mine["exact-duplicates"] = f"the same bytes as {one_line(first[image.sha256])}"
        elif group.kind == "near":
            mine["near-duplicates"] = f"group {group.number}, of which {one_line(group.images[0])} is the largest"
        first.setdefault(image.sha256, image.path)
    return [
        image.model_copy(
            update={
                "findings": image.findings | found[image.path],
                "group": by_path[image.path].number if image.path in by_path else None,
            }
        )
        if image.path in found
        else image
        for image in images
    ]


def _thumbnails_of_found(
    folder: Path, images: Sequence[AuditedImage], limits: MeasureLimits, workers: int | None
) -> dict[str, bytes]:
    """Thumbnails of SHOWN_IMAGES images at most, what stops or warns before what is only noted."""
    rank = {code: index for index, code in enumerate(CODES)}
    concerned = [image for image in images if image.findings and image.measures is not None]
    concerned.sort(key=lambda image: min(rank[code] for code in image.findings))
    paths = [image.path for image in concerned[:SHOWN_IMAGES]]
    measured = measure_all([folder / path for path in paths], replace(limits, thumbnail=True), silent, workers)
    return {path: result.thumbnail for path, result in zip(paths, measured, strict=True) if result.thumbnail}
