"""Which images are made together: those with the same adapters next to one another, as many as the batch takes.

Every row of a batch pays for the ranks of all adapters in it, so images of one set of adapters go together, whatever
their weights, prompts, seeds and methods; sets share a batch only where one ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from brushset.generation.settings import Picture


def plan_batches(pictures: Sequence[Picture], steps: int, batch_size: int) -> Iterator[list[int]]:
    """Indices of the pictures of each batch, of at most `batch_size` views, or of one picture."""
    shapes = [_shape(picture, steps) for picture in pictures]
    order = sorted(range(len(pictures)), key=lambda index: shapes[index][0])
    batch: list[int] = []
    views = 0
    for index in order:
        if batch and views + shapes[index][1] > batch_size:
            yield batch
            batch, views = [], 0
        batch.append(index)
        views += shapes[index][1]
    if batch:
        yield batch


def _shape(picture: Picture, steps: int) -> tuple[tuple[str, ...], int]:
    """The adapters that an image sees, and how many views it has."""
    courses = [picture.course(step, steps) for step in range(steps)]
    names = {name for views in courses for view in views for name, weight in view.mix if not weight.nothing}
    return tuple(sorted(names)), max(len(views) for views in courses)
