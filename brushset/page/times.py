"""How long the stages took, as the pages tell it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from brushset.stage_records import StageRecord


@dataclass(frozen=True)
class StageTime:
    """How long a stage took; `share` of the longest, 0 to 1."""

    stage: str
    seconds: float
    share: float
    taken_from: str


def stage_times(records: Mapping[str, StageRecord | None]) -> list[StageTime]:
    """The stages' times from their records, in order."""
    took = {name: record.ended_at - record.started_at for name, record in records.items() if record}
    longest = max([*took.values(), 1e-9])
    return [
        StageTime(name, took[name], took[name] / longest, record.taken_from)
        for name, record in records.items()
        if record
    ]
