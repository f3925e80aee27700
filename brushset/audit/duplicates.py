"""Which images show the same? Groups over 64-bit perceptual hashes, exact: no pair within the distance is missed.

Every hash is held against all that have not found a group yet, in one numpy pass each: memory grows with the number of
images, not with the number of pairs, and the more duplicates there are the sooner it ends. 100,000 different hashes
take 5.3 s of one core and 29 MiB, as many within six bits of one another 0.1 s (bench/audit.py --hashes 100000). An
index (multi-index hashing, Norouzi et al. 2012) would save seconds of an audit that decodes for half an hour.

The default distance is 6: table and reasons in docs/LOG.md. The hash is balanced (32 bits are set), so distances are even.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from brushset.records import AuditedImage, DuplicateGroup

if TYPE_CHECKING:
    import numpy as np

    Hashes = np.ndarray[Any, np.dtype[np.uint64]]
    Indices = np.ndarray[Any, np.dtype[np.intp]]


def group_near(hashes: Sequence[int], distance: int) -> list[list[int]]:
    """Indices of `hashes` in groups: two are in one where a chain of steps of at most `distance` bits connects them.

    Groups and their members are in the order of first appearance; those alone are in none.
    """
    import numpy as np

    if not len(hashes):
        return []
    different, first, where = np.unique(np.array(hashes, dtype=np.uint64), return_index=True, return_inverse=True)
    component = np.empty(len(different), dtype=np.int64)
    # In order of appearance, so that the groups' order does not depend on the hashes' values.
    rest = _Rest(np.argsort(first, kind="stable"), different)
    for number in range(len(different)):
        component[rest.take_component(distance)] = number
        if not len(rest.indices):
            break
    members: dict[int, list[int]] = defaultdict(list)
    for index, group in enumerate(component[where].tolist()):
        members[group].append(index)
    return [group for group in members.values() if len(group) > 1]


class _Rest:
    """What has not found a group yet: indices, and beside them their hashes, so that none is gathered anew."""

    def __init__(self, indices: Indices, hashes: Hashes) -> None:
        self.indices = indices
        self.hashes = hashes[indices]

    def take_component(self, distance: int) -> list[int]:
        """Removes and returns the first and all that it reaches."""
        import numpy as np

        reached, todo = [int(self.indices[0])], [self.hashes[0]]
        self.indices, self.hashes = self.indices[1:], self.hashes[1:]
        while todo and len(self.indices):
            near = np.bitwise_count(self.hashes ^ todo.pop()) <= distance
            if near.any():
                reached += self.indices[near].tolist()
                todo += list(self.hashes[near])
                self.indices, self.hashes = self.indices[~near], self.hashes[~near]
        return reached


def group_duplicates(images: Sequence[AuditedImage], distance: int) -> list[DuplicateGroup]:
    """Groups of images whose hashes are near or whose bytes are equal, the largest image of each first.

    Images without a hash (of one colour, or unreadable) join by equal bytes alone.
    """
    hashed = [image for image in images if image.phash]
    near = group_near([int(image.phash, 16) for image in hashed], distance)
    groups = [[hashed[index] for index in group] for group in near]
    same: dict[str, list[AuditedImage]] = defaultdict(list)
    for image in images:
        if not image.phash and image.measures is not None:
            same[image.sha256].append(image)
    groups += [group for group in same.values() if len(group) > 1]
    groups.sort(key=lambda group: group[0].path)
    return [_group(number, group) for number, group in enumerate(groups, 1)]


def _group(number: int, images: Sequence[AuditedImage]) -> DuplicateGroup:
    best_first = sorted(images, key=lambda image: (-image.width_px * image.height_px, -image.size_bytes, image.path))
    hashes = [int(image.phash or "0", 16) for image in best_first]
    return DuplicateGroup(
        number=number,
        kind="exact" if len({image.sha256 for image in images}) == 1 else "near",
        images=tuple(image.path for image in best_first),
        widest=max((value ^ hashes[0]).bit_count() for value in hashes),
    )
