"""sweep.json: what a sweep consists of, so that status, report and the same command know it again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from brushset.errors import UsageError
from brushset.files import read_json, sha256_json, shown, write_json
from brushset.load import check_style_name
from brushset.paths import RunPaths, RunsDir
from brushset.records.base import Record

_NAME_CHARS = 8


class Entry(Record):
    """One run of a sweep: `run` is "<style>/<run-id>", `settings` what makes it differ; `rung` counts from the shortest
    training, 0 where there is no halving.
    """

    run: str
    style: str
    settings: dict[str, Any]
    rung: int = 0


class Sweep(Record):
    """sweep.json. `varied` are the settings that are not the same in all of its runs, seeds among them."""

    name: str
    argv: tuple[str, ...]
    created_at: float
    varied: tuple[str, ...]
    rungs: int = 1
    until: str
    entries: tuple[Entry, ...]

    def runs(self, runs: RunsDir) -> list[RunPaths]:
        """The run folders, in their order."""
        return [runs.run(*entry.run.split("/", 1)) for entry in self.entries]


def sweep_name(asked: str | None, styles: Sequence[str], plan: object) -> str:
    """The name asked for; else the styles and a digest of what is planned: the same plan has the same name.

    Raises:
        UsageError: it could not be a folder's name everywhere.
    """
    if asked is not None:
        return check_style_name(asked)
    return f"{'-'.join(styles)[:30]}-{sha256_json(plan)[:_NAME_CHARS]}"


def load_sweep(runs: RunsDir, name: str) -> Sweep:
    """A sweep by its name.

    Raises:
        UsageError: there is none that can be read; says which there are.
    """
    path = runs.sweep(name) / "sweep.json"
    if not path.is_file():
        there = ", ".join(each.name for each in find_sweeps(runs)) or "none yet"
        raise UsageError(f'"{name}": no such sweep below {shown(runs.root)}; there are: {there}')
    try:
        return Sweep.model_validate(read_json(path))
    except ValidationError as error:
        raise UsageError(f"{shown(path)}: is not one of this version's: {error.errors()[0]['msg']}") from error


def find_sweeps(runs: RunsDir) -> list[Path]:
    """The folders of all sweeps."""
    return sorted(path.parent for path in runs.sweep("").glob("*/sweep.json"))


def save_sweep(runs: RunsDir, sweep: Sweep) -> Path:
    """Writes sweep.json, atomically."""
    path = runs.sweep(sweep.name) / "sweep.json"
    write_json(path, sweep.model_dump(mode="json"))
    return path
