"""`status`: every run, how far it came, and where, from the run folders alone, whether or not anything is running."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from brushset.cli.guard import print_event, stdout
from brushset.cli.lookafter.state import RunState, read_state
from brushset.cli.options import Options
from brushset.cli.sweeps.members import label_of
from brushset.errors import Interrupted
from brushset.page.template import duration
from brushset.paths import RunPaths, RunsDir
from brushset.sweeps.ledger import load_sweep

REFRESH_S = 2.0
_FRAME_LINES = 4  # of the table's head and frame
_COLUMNS = (
    "style", "run", "settings", "state", "stage", "step", "loss", "it/s", "ETA", "where", "tries", "last sign",
)  # fmt: skip
_ANY_WIDTH = 10_000
_SPARE = ("last sign", "where", "tries", "it/s", "loss")  # the first to go on a narrow screen
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
        with Live(console=stdout, auto_refresh=False, screen=stdout.is_terminal) as live:
            while True:
                live.update(_screen(options, stages, sweep), refresh=True)
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
    states = list(find_states(options, sweep))
    if options.json:
        for state in states:
            print_event("run", _fields(state))
        return
    if not states:
        stdout.print(f"{options.runs_dir}: no runs yet")
        return
    stdout.print(_table(states, stages, _labels(options, sweep)))
    for line in _last_words(states):
        stdout.print(line, markup=False)


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


def _screen(options: Options, stages: Sequence[str], sweep: str | None) -> RenderableType:
    """Table and last words, as much of them as a terminal has room for: whatever is at work, and the newest of the others."""
    states = list(find_states(options, sweep))
    by_age = sorted(states, key=lambda each: (each.is_open, each.manifest.updated_at))
    room = stdout.height - _FRAME_LINES if stdout.is_terminal else len(states) * 2
    while len(by_age) > 1 and len(by_age) + len(_last_words(by_age)) > room:
        del by_age[0]
    kept = [each for each in states if each in by_age]
    words = [Text(line, no_wrap=True, overflow="ellipsis") for line in _last_words(kept)]
    return Group(_table(kept, stages, _labels(options, sweep)), *words)


def _last_words(states: Sequence[RunState]) -> list[str]:
    """Why runs do not go on, a line each."""
    told = [(each, "" if each.words.startswith(each.state) else f"{each.state}: ") for each in states if each.words]
    return [f"{each.manifest.run_id}  {state}{each.words}" for each, state in told]


def _table(states: Sequence[RunState], stages: Sequence[str], labels: Mapping[Path, str]) -> Table:
    """A row a run, in as many columns as there is room for; empty ones are left out. `labels` are what runs of a sweep
    differ in.
    """
    rows = [_row(state, stages, labels.get(state.run.root, "")) for state in states]
    columns = [name for name in _COLUMNS if any(row[name] for row in rows)]
    spare = [name for name in (*_SPARE, *(["style"] if labels else [])) if name in columns]
    table = _of_columns(columns, rows)
    boundless = stdout.options.update(max_width=_ANY_WIDTH)
    while spare and Measurement.get(stdout, boundless, table).maximum > stdout.width:
        columns.remove(spare.pop(0))
        table = _of_columns(columns, rows)
    return table


def _of_columns(columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> Table:
    table = Table()
    for name in columns:
        table.add_column(name, no_wrap=True)
    for row in rows:
        table.add_row(*(row[name] for name in columns))
    return table


def _labels(options: Options, sweep: str | None) -> dict[Path, str]:
    if sweep is None:
        return {}
    runs = RunsDir(options.runs_dir.absolute())
    loaded = load_sweep(runs, sweep)
    settings = [entry.settings for entry in loaded.entries]
    return {run.root: label_of("", point) for run, point in zip(loaded.runs(runs), settings, strict=True)}


def _row(state: RunState, stages: Sequence[str], label: str) -> dict[str, str]:
    manifest, step = state.manifest, state.step
    done = sum(stage in manifest.stages for stage in stages)
    training = state.state in {"running", "silent"} and state.stage == "train"
    colour = _COLOURS.get(state.state)
    job = f" {state.executor} {state.job}".rstrip() if state.is_open and state.executor else ""
    eta_s = step.get("eta_s")
    return {
        "style": manifest.style + (" (smoke)" if manifest.smoke else ""),
        "run": manifest.run_id,
        "settings": escape(label),
        "state": f"[{colour}]{state.state}[/{colour}]" if colour else state.state,
        "stage": f"{state.stage} {done}/{len(stages)}".strip(),
        "step": f"{step['step']}/{step['total']}" if step else "",
        "loss": _number(step.get("loss"), ".4f"),
        "it/s": _number(step.get("it_per_s"), ".2f") if training else "",
        "ETA": duration(float(eta_s)) if training and isinstance(eta_s, int | float) else "",
        "where": escape(f"{state.where}{job}"),
        "tries": str(state.attempts or ""),
        "last sign": _when(state),
    }


def _when(state: RunState) -> str:
    if state.is_open and state.quiet_s is not None:
        return f"{duration(state.quiet_s)} ago"
    return dt.datetime.fromtimestamp(state.manifest.updated_at).astimezone().strftime("%m-%d %H:%M")


def _number(value: object, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else ""
