"""`logs RUN`: the end of what a run's newest process said; with `-f` what it goes on to say."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from brushset.cli.guard import stderr, stdout
from brushset.cli.lookafter.find import find_run
from brushset.cli.options import Options
from brushset.errors import Interrupted, UsageError
from brushset.executors.standing import newest_log
from brushset.files import one_line, shown
from brushset.paths import RunPaths, RunsDir

Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on as it grows, until Ctrl-C.")]
Lines = Annotated[int, typer.Option("--lines", "-n", min=1, help="How many of its last lines.")]
What = Annotated[
    str | None, typer.Option("--what", metavar="train|worker|events|error", help="Which log; default: the newest one.")
]
_POLL_S = 0.5
_TAIL_BYTES = 1 << 18


def show_logs(options: Options, which: str, what: str | None, lines: int, *, follow: bool) -> None:
    """Prints the end of one log.

    Raises:
        UsageError: no such run, or it has said nothing yet.
    """
    run = find_run(which, RunsDir(options.runs_dir.absolute()))
    path = _choose(run, what)
    others = [name for name, log in _logs(run).items() if log.is_file() and log != path]
    stderr.print(f"{shown(path)}{'; also: --what ' + ', '.join(others) if others else ''}", style="dim", markup=False)
    place = _print_tail(path, lines)
    try:
        while follow:
            time.sleep(_POLL_S)
            path, place = _print_more(run, what, path, place)
    except Interrupted:
        return  # that is how one ends it


def _logs(run: RunPaths) -> dict[str, Path]:
    return {
        "train": run.train_log,
        "worker": newest_log(run),
        "events": run.events,
        "error": run.logs / "error.log",
    }


def _choose(run: RunPaths, what: str | None) -> Path:
    logs = _logs(run)
    if what is not None and what not in logs:
        raise UsageError(f"--what {what}: no such log; fix: one of {', '.join(logs)}")
    there = {name: log for name, log in logs.items() if log.is_file() and log.stat().st_size}
    if what is not None and what not in there:
        raise UsageError(f"{shown(logs[what])}: is not there, or empty; there are: {', '.join(there) or 'none yet'}")
    if not there:
        raise UsageError(f"{shown(run.logs)}: this run has said nothing yet")
    plain = [log for name, log in there.items() if name in {"train", "worker"}] or list(there.values())
    return there[what] if what else max(plain, key=lambda log: log.stat().st_mtime)


def _print_tail(path: Path, lines: int) -> int:
    """Prints the last lines; returns how far the file was read."""
    with path.open("rb") as file:
        size = path.stat().st_size
        file.seek(max(0, size - _TAIL_BYTES))
        content = file.read()
        place = file.tell()
    for line in content.decode("utf-8", "replace").splitlines()[-lines:]:
        stdout.print(one_line(line), markup=False)
    return place


def _print_more(run: RunPaths, what: str | None, path: Path, place: int) -> tuple[Path, int]:
    """Prints what was added; where a new process has begun a log of its own, that from its start."""
    newest = _choose(run, what)
    if newest != path or newest.stat().st_size < place:
        path, place = newest, 0
        stderr.print(shown(path), style="dim", markup=False)
    with path.open("rb") as file:
        file.seek(place)
        content = file.read()
    whole = content[: content.rfind(b"\n") + 1]  # the rest of the line is still to come
    for line in whole.decode("utf-8", "replace").splitlines():
        stdout.print(one_line(line), markup=False)
    return path, place + len(whole)
