"""Which images are never trained on, so that evaluation has some that the adapter has not seen.

Near-duplicates stay together: a held-out image whose twin is trained on would measure memory. The choice hangs on the
images' bytes alone: other file names or another order hold out the same images, and an image more or less moves few.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from brushset.errors import VerificationFailed
from brushset.files import sha256_file, sha256_json, shown
from brushset.listing import IMAGE_SUFFIXES
from brushset.records import AuditedImage, Prepared, PreparedImage
from brushset.spec import DatasetSection


def choose_heldout(images: Sequence[AuditedImage], dataset: DatasetSection) -> set[str]:
    """The hashes of the images to hold out: whole groups, as near to `holdout` of all as they allow.

    Args:
        images: different ones, each content once.
        dataset: `holdout` is the share. Below `holdout_from` images none is held out, and never so many that training
            is left with fewer than the share would leave of that number.
    """
    target = count_heldout(len(images), dataset)
    if not target:
        return set()
    groups = _groups(images)
    limit = len(images) - math.ceil(dataset.holdout_from * (1 - dataset.holdout))
    chosen = choose_sizes([len(group) for group in groups], target=target, limit=limit)
    return {sha256 for index in chosen for sha256 in groups[index]}


def count_heldout(images: int, dataset: DatasetSection) -> int:
    """How many of so many images are to be held out; groups of near-duplicates may make it a few more or less."""
    return round(images * dataset.holdout) if images >= dataset.holdout_from else 0


def choose_sizes(sizes: Sequence[int], *, target: int, limit: int) -> list[int]:
    """Indices of the sizes whose sum is nearest to `target` of all sums up to `limit`; of several such choices the one
    that takes the earliest.

    Sums that can be reached are bits of an integer, one such integer for each suffix of the list: 0.3 s and 30 MB at 100,000.
    """
    limit = min(limit, 2 * target)  # no sum at all, 0, is nearer than any beyond
    mask = (1 << (limit + 1)) - 1
    reachable = [1]
    for size in reversed(sizes):
        more = (reachable[-1] | reachable[-1] << size) & mask if size <= limit else reachable[-1]
        reachable.append(reachable[-1] if more == reachable[-1] else more)  # the same object: one copy of equal ones
    reachable.reverse()
    left = min(
        (total for total in range(limit + 1) if reachable[0] >> total & 1), key=lambda total: abs(total - target)
    )
    chosen = []
    for index, size in enumerate(sizes):
        if size <= left and reachable[index + 1] >> (left - size) & 1:
            chosen.append(index)
            left -= size
    return chosen


def seal_of(images: Iterable[PreparedImage]) -> str:
    """SHA-256 over the sorted source hashes; empty for no image."""
    hashes = sorted(image.source_sha256 for image in images)
    return sha256_json(hashes) if hashes else ""


def verify_holdout(prepared: Prepared, folder: Path) -> None:
    """Checks that no held-out image can have been trained on: neither by the record, nor by what lies in `folder`, the
    run's images/, of which trainers take every image.

    Raises:
        VerificationFailed: the seal is broken, or a held-out image is among those trained on; a line each.
    """
    found = []
    if seal_of(prepared.heldout) != prepared.seal:
        found.append(f"{shown(folder)}: the held-out images are not the ones that were sealed; fix: --force preprocess")
    trained = {image.source_sha256: image for image in prepared.images}
    found += [
        f"{shown(folder / image.name)}: held out, and trained on as {trained[image.source_sha256].name}; "
        f"fix: --force preprocess"
        for image in prepared.heldout
        if image.source_sha256 in trained
    ]
    found += [
        f"{shown(copy)}: a copy of the held-out {image.name} among the images that are trained on; fix: remove it, "
        f"then --force train"
        for image, copy in _copies(prepared.heldout, folder)
    ]
    if found:
        raise VerificationFailed.of_many(found)


def _groups(images: Sequence[AuditedImage]) -> list[list[str]]:
    """Hashes of the images that must not be parted, in an order that hangs on these hashes alone."""
    members: dict[object, list[str]] = defaultdict(list)
    for image in images:
        members[image.sha256 if image.group is None else image.group].append(image.sha256)
    # A group is hashed as a whole: by its least hash, large groups would tend to stand in front.
    return sorted((sorted(group) for group in members.values()), key=sha256_json)


def _copies(heldout: Sequence[PreparedImage], folder: Path) -> list[tuple[PreparedImage, Path]]:
    """Images in `folder` itself that are, byte for byte, a held-out one. Only files of equal size are read."""
    files = [path for path in sorted(folder.glob("*")) if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path in files:
        by_size[path.stat().st_size].append(path)
    found = []
    for image in heldout:
        path = folder / image.name
        alike = by_size.get(path.stat().st_size, []) if path.is_file() else []
        found += [(image, copy) for copy in alike if sha256_file(copy) == sha256_file(path)]
    return found
