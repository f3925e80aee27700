"""What runs of a sweep have in common is done once: by one of them, before the others begin and take it over.

Runs take over from one another whatever stage has equal inputs, but only once it is done: begun all at once, each would
caption the same images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brushset.files import sha256_json
from brushset.pipeline import Stage, read_settings
from brushset.spec import StyleSpec


@dataclass(frozen=True)
class Leg:
    """The runs, by their place, that go up to `until` before the others go anywhere."""

    until: str
    places: tuple[int, ...]


def find_shared_legs(
    specs: Sequence[StyleSpec], images: Sequence[Mapping[str, str]], stages: Sequence[Stage[Any]]
) -> list[Leg]:
    """The legs to go first, one of each group of runs that are alike so far, from the first stage towards training. From
    there on every run is its own.
    """
    early = [stage.name for stage in stages]
    early = early[: early.index("train")] if "train" in early else early
    groups = [_groups(specs, images, stages[: depth + 1]) for depth in range(len(early))]
    legs: list[Leg] = []
    for depth, found in enumerate(groups):
        after = groups[depth + 1] if depth + 1 < len(groups) else []
        leaders = tuple(group[0] for group in found if len(group) > 1)
        if leaders and found != after:
            legs.append(Leg(early[depth], leaders))
    return legs


def _groups(
    specs: Sequence[StyleSpec], images: Sequence[Mapping[str, str]], stages: Sequence[Stage[Any]]
) -> list[tuple[int, ...]]:
    """Places of the runs that are alike in all that these stages read."""
    found: dict[str, list[int]] = {}
    for place, spec in enumerate(specs):
        read = [read_settings(stage, spec) for stage in stages]
        found.setdefault(sha256_json([spec.name, images[place], read]), []).append(place)
    return [tuple(places) for places in found.values()]
