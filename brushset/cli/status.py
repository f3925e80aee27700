"""`status`: every run, how far it came, from the run folders alone, whether or not anything is running."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from brushset.cli.guard import print_event, stdout
from brushset.cli.options import Options
from brushset.manifest import RunManifest, read_manifest
from brushset.paths import RunPaths, RunsDir

_TAIL_BYTES = 1 << 16


def show(options: Options, stages: Sequence[str]) -> None:
    """Prints a row a run, newest last."""
    runs = RunsDir(options.runs_dir.absolute())
    names = options.style if options.style and "all" not in options.style else runs.styles()
    table = Table("style", "run", "state", "stages", "step", "loss", "engine", "updated")
    table.add_column("last words", no_wrap=True, overflow="ellipsis")
    for name in names:
        for run in runs.runs_of(name):
            manifest = read_manifest(run)
            if manifest is None:
                continue
            step = last_step(run)
            if options.json:
                print_event(
                    "run",
                    {"folder": str(run.root), "step": step, **manifest.model_dump(mode="json", exclude={"images"})},
                )
            else:
                table.add_row(*_row(manifest, step, stages))
    if not options.json:
        stdout.print(table if table.row_count else f"{options.runs_dir}: no runs yet")


def last_step(run: RunPaths) -> dict[str, Any]:
    """The newest training step in the run's events; empty where it has not trained."""
    if not run.events.is_file():
        return {}
    with run.events.open("rb") as file:
        file.seek(max(0, run.events.stat().st_size - _TAIL_BYTES))
        lines = file.read().decode("utf-8", "replace").splitlines()
    for line in reversed(lines):
        if '"train_step"' in line and line.startswith("{"):
            return dict(json.loads(line))
    return {}


def _row(manifest: RunManifest, step: dict[str, Any], stages: Sequence[str]) -> list[str]:
    done = sum(stage in manifest.stages for stage in stages)
    when = dt.datetime.fromtimestamp(manifest.updated_at).astimezone().strftime("%Y-%m-%d %H:%M")
    loss = step.get("loss")
    return [
        manifest.style + (" (smoke)" if manifest.smoke else ""),
        manifest.run_id,
        manifest.status,
        f"{done}/{len(stages)}",
        f"{step['step']}/{step['total']}" if step else "",
        f"{loss:.4f}" if isinstance(loss, int | float) else "",
        manifest.engine,
        when,
        escape(manifest.error.splitlines()[0] if manifest.error else ""),
    ]
