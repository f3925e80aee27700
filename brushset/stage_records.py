"""What finished stages left on record in a run's folder, and whether it still holds."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import ValidationError

from brushset.errors import BrushsetError
from brushset.files import read_json, sha256_file, sha256_json
from brushset.paths import RunPaths
from brushset.records import Record

R = TypeVar("R", bound=Record)


class StageRecord(Record):
    """What is kept of a finished stage: runs/<style>/<run-id>/records/<stage>.json."""

    stage: str
    version: int
    digest: str
    started_at: float
    ended_at: float
    outputs: dict[str, str]
    taken_from: str = ""
    data: dict[str, Any]

    @property
    def content_digest(self) -> str:
        """What stages further down depend on: the inputs and the very bytes that came out."""
        return sha256_json([self.digest, self.outputs, self.data])


def load_record(run: RunPaths, stage: str) -> StageRecord | None:
    """The record of a stage, or None where there is none that can be read."""
    path = run.record(stage)
    if not path.is_file():
        return None
    try:
        return StageRecord.model_validate(read_json(path))
    except (BrushsetError, ValidationError):
        return None


def load_records(run: RunPaths) -> dict[str, StageRecord]:
    """Every stage's record that is there, by its name, in the order in which they were made."""
    names = [path.stem for path in run.record("x").parent.glob("*.json")]
    found = [record for name in names if (record := load_record(run, name))]
    return {record.stage: record for record in sorted(found, key=lambda record: record.ended_at)}


def load_result(run: RunPaths, stage: str, kind: type[R]) -> R | None:
    """What a stage left in a run; None where it has not been done, or by a version whose record reads otherwise."""
    record = load_record(run, stage)
    if record is None:
        return None
    try:
        return kind.model_validate(record.data)
    except ValidationError:
        return None


def outputs_hold(run: RunPaths, record: StageRecord) -> bool:
    """Whether every output file is there and hashes as recorded."""
    return all(
        (run.root / path).is_file() and sha256_file(run.root / path) == sha for path, sha in record.outputs.items()
    )
