"""`status`: every run, how far it came, and where, from the run folders alone, whether or not anything is running."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from brushset.cli.guard import print_event, stdout
from brushset.cli.lookafter.state import RunState, read_state
from brushset.cli.options import Options
from brushset.errors import Interrupted
from brushset.page.template import duration
from brushset.paths import RunPaths, RunsDir
from brushset.sweeps.ledger import load_sweep

REFRESH_S = 2.0
_FRAME_LINES = 4  # of the table's head and frame
_COLOURS = {
    "running": "green",
    "done": "blue",
    "failed": "red",
    "dead": "red",
    "silent": "yellow",
    "cancelled": "yellow",
}
Watch = Annotated[bool, typer.Option("--watch", help="Show it anew every two seconds, until Ctrl-C.")]
OfSweep = Annotated[str | None, typer.Option("--sweep", metavar="NAME", help="Only the runs of this sweep.")]


def show(options: Options, stages: Sequence[str], *, watch: bool = False, sweep: str | None = None) -> None:
    """Prints a row a run, newest last; `watch` goes on with it."""
    if not watch:
        _show_once(options, stages, sweep)
        return
    try:
        if options.json:
            while True:
                _show_once(options, stages, sweep)
                time.sleep(REFRESH_S)
        most = max(1, stdout.height - _FRAME_LINES) if stdout.is_terminal else None
        with Live(console=stdout, auto_refresh=False, screen=stdout.is_terminal) as live:
            while True:
                live.update(_table(options, stages, sweep, most), refresh=True)
                time.sleep(REFRESH_S)
    except Interrupted:
        return  # that is how one ends it


def find_states(options: Options, sweep: str | None = None) -> Iterator[RunState]:
    """The runs that are meant: of a sweep, of the styles asked for, or all."""
    runs = RunsDir(options.runs_dir.absolute())
    if sweep is not None:
        folders: list[RunPaths] = load_sweep(runs, sweep).runs(runs)
    else:
        names = options.style if options.style and "all" not in options.style else runs.styles()
        folders = [run for name in names for run in runs.runs_of(name)]
    for run in folders:
        if (state := read_state(run)) is not None:
            yield state


def _show_once(options: Options, stages: Sequence[str], sweep: str | None) -> None:
    if not options.json:
        table = _table(options, stages, sweep)
        stdout.print(table if table.row_count else f"{options.runs_dir}: no runs yet")
        return
    for state in find_states(options, sweep):
        print_event("run", _fields(state))


def _fields(state: RunState) -> dict[str, Any]:
    """A run for machines: what run.json says of it, and how it stands."""
    return {
        "folder": str(state.run.root),
        "state": state.state,
        "stage": state.stage,
        "step": dict(state.step),
        "where": state.where,
        "executor": state.executor,
        "job": state.job,
        "attempts": state.attempts,
        "quiet_s": None if state.quiet_s is None else round(state.quiet_s, 1),
        "words": state.words,
        **state.manifest.model_dump(mode="json", exclude={"images"}),
    }


def _table(options: Options, stages: Sequence[str], sweep: str | None, most: int | None = None) -> Table:
    table = Table(expand=True)
    for name in ("style", "run", "state", "stage", "step", "loss", "it/s", "ETA", "where", "tries", "last sign"):
        table.add_column(name, no_wrap=True)
    table.add_column("last words", no_wrap=True, overflow="ellipsis", ratio=1, min_width=12)
    states = list(find_states(options, sweep))
    if most is not None and len(states) > most:  # whatever is at work, and the newest of the others
        kept = sorted(states, key=lambda each: (each.is_open, each.manifest.updated_at))[-most:]
        states = [each for each in states if each in kept]
    for state in states:
        table.add_row(*_row(state, stages))
    return table


def _row(state: RunState, stages: Sequence[str]) -> list[str]:
    manifest, step = state.manifest, state.step
    done = sum(stage in manifest.stages for stage in stages)
    training = state.state in {"running", "silent"} and state.stage == "train"
    colour = _COLOURS.get(state.state)
    job = f" {state.executor} {state.job}".rstrip() if state.is_open and state.executor else ""
    return [
        manifest.style + (" (smoke)" if manifest.smoke else ""),
        manifest.run_id,
        f"[{colour}]{state.state}[/{colour}]" if colour else state.state,
        f"{state.stage} {done}/{len(stages)}".strip(),
        f"{step['step']}/{step['total']}" if step else "",
        _number(step.get("loss"), ".4f"),
        _number(step.get("it_per_s"), ".2f") if training else "",
        duration(float(step["eta_s"])) if training and isinstance(step.get("eta_s"), int | float) else "",
        escape(f"{state.where}{job}"),
        str(state.attempts or ""),
        _when(state),
        escape(state.words),
    ]


def _when(state: RunState) -> str:
    if state.is_open and state.quiet_s is not None:
        return f"{duration(state.quiet_s)} ago"
    return dt.datetime.fromtimestamp(state.manifest.updated_at).astimezone().strftime("%m-%d %H:%M")


def _number(value: object, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else ""
