"""Which run a person means: its folder, its id, or its style, whose newest run it is then."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from brushset.errors import UsageError
from brushset.files import shown
from brushset.paths import RunPaths, RunsDir

Which = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder or id, or a style: its newest run.")]
Several = Annotated[
    list[str], typer.Argument(metavar="RUN…", help="Runs' folders or ids, or styles: their newest runs.")
]


def find_run(text: str, runs: RunsDir) -> RunPaths:
    """The run that is meant.

    Raises:
        UsageError: there is none, or several.
    """
    folder = Path(text)
    if (folder / "run.json").is_file():
        return RunPaths(folder.resolve())
    style, _, run_id = text.rpartition("/")
    if style and (runs.run(style, run_id).manifest).is_file():
        return RunPaths(runs.run(style, run_id).root.resolve())
    if text in runs.styles() and (latest := runs.latest(text)) is not None:
        return RunPaths(latest.root.resolve())
    found = [
        run
        for name in runs.styles()
        for run in runs.runs_of(name)
        if run.run_id.startswith(text) or run.run_id.endswith(text)
    ]
    if len(found) == 1 and text:
        return RunPaths(found[0].root.resolve())
    what = f"{len(found)} runs are called so" if len(found) > 1 and text else "no such run or style"
    raise UsageError(f'"{text}": {what} below {shown(runs.root)}; fix: a folder as orchestrate.py status names it')
