"""`compare`: runs side by side. It reads what the runs left, whatever state they are in, and changes nothing in them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from brushset.cli.guard import print_event, stderr, stdout
from brushset.cli.options import Options
from brushset.cli.project import read_style
from brushset.errors import BrushsetError, UsageError
from brushset.files import shown, write_atomic, write_json
from brushset.load import load_style
from brushset.manifest import read_manifest
from brushset.page.compare import (
    AgainstFirst,
    ComparedRun,
    compare_json,
    difference_line,
    outcome_rows,
    render_compare,
    sampled_otherwise,
    setting_rows,
)
from brushset.page.metrics import decimals_of, title_of
from brushset.page.pictures import load_values
from brushset.paths import RunPaths, RunsDir
from brushset.records import Difference, Estimate
from brushset.stage_records import load_record

Sources = Annotated[
    list[str], typer.Argument(metavar="RUN RUN…", help="Run folders, STYLE/RUN-ID, or styles: their newest runs.")
]
Out = Annotated[
    Path | None, typer.Option(metavar="FILE.html", help="Page to write, .json beside it; default: in --runs-dir.")
]
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def compare_runs(options: Options, sources: Sequence[str], stages: Sequence[str], out: Path | None) -> None:
    """Writes the page, and prints what differs.

    Raises:
        UsageError: fewer than two runs, one that is not there, or one twice; all findings at once.
    """
    runs = RunsDir(options.runs_dir.absolute())
    compared = read_runs(sources, runs, stages)
    path = out or runs.root / f"compare-{_file_name(compared)}.html"
    if path.suffix != ".html":
        raise UsageError(f"--out {shown(path)}: the page ends with .html; fix: --out {path.name}.html")
    compared = [_linked(each, path.absolute().parent) for each in compared]
    against = find_against(compared)
    content = compare_json(compared, against)
    write_json(path.with_suffix(".json"), content)
    write_atomic(path, render_compare(compared, against))
    if options.json:
        print_event("compare", {"page": str(path), **content})
        return
    _print(compared, against)
    stdout.print(f"page: {shown(path)}", markup=False)


def read_runs(sources: Sequence[str], runs: RunsDir, stages: Sequence[str]) -> list[ComparedRun]:
    """The runs, as far as they came. Raises UsageError as `compare_runs` does."""
    if not 2 <= len(sources) <= len(_LETTERS):
        raise UsageError(f"compare: {len(sources)} run; two or more are compared, such as cartoon cartoon/RUN-ID")
    found: list[ComparedRun] = []
    failures: list[str] = []
    for letter, source in zip(_LETTERS, sources, strict=False):
        each = _tried(letter, source, runs, stages)
        twice = [other.letter for other in found if isinstance(each, ComparedRun) and other.run.root == each.run.root]
        if isinstance(each, str):
            failures.append(each)
        elif twice:
            failures.append(f"{source}: is the same run as {twice[0]}; fix: name another")
        else:
            found.append(each)
    if failures:
        raise UsageError.of_many(failures)
    return found


def find_run(source: str, runs: RunsDir) -> RunPaths:
    """A run folder, `style/run-id` in the folder of runs, or a style's newest run.

    Raises:
        UsageError: there is none.
    """
    for folder in (Path(source), runs.root / source):
        if (folder / "run.json").is_file():
            return RunPaths(folder.resolve())
    newest = runs.latest(source) if source in runs.styles() else None
    if newest is not None:
        return RunPaths(newest.root.resolve())
    style = source.partition("/")[0]
    known = [run.run_id for run in runs.runs_of(style)] if style in runs.styles() else runs.styles()
    kind = f"runs of {style}" if style in runs.styles() else "styles with runs"
    raise UsageError(
        f"{source}: neither a run folder nor a style with runs in {shown(runs.root)}; {kind}: {', '.join(known) or 'none'}"
    )


def find_against(runs: Sequence[ComparedRun]) -> list[AgainstFirst]:
    """How each run differs from the first."""
    from eval.differences import Side, find_differences

    first, *others = runs
    found = []
    for other in others:
        pair = [(each.run.evaluation, each.main, each.values) for each in (first, other)]
        sides = [Side(report, main.name, values) for report, main, values in pair if report and main]
        differences = find_differences(sides[0], sides[1]) if len(sides) == 2 else []
        found.append(AgainstFirst(other.letter, tuple(differences)))
    return found


def _tried(letter: str, source: str, runs: RunsDir, stages: Sequence[str]) -> ComparedRun | str:
    """The run, or what is wrong with it."""
    try:
        return _read(letter, find_run(source, runs), stages)
    except BrushsetError as error:
        return str(error)


def _read(letter: str, run: RunPaths, stages: Sequence[str]) -> ComparedRun:
    return ComparedRun(
        letter=letter,
        run=read_style(run, RunsDir(run.root.parent.parent)),
        spec=load_style(run.spec),
        manifest=read_manifest(run),
        values=load_values(run),
        missing=tuple(stage for stage in stages if load_record(run, stage) is None),
    )


def _linked(each: ComparedRun, page_folder: Path) -> ComparedRun:
    """With the run's folder as the page links to it."""
    folder = os.path.relpath(each.run.root, page_folder.resolve())
    return dataclasses.replace(each, run=dataclasses.replace(each.run, folder=Path(folder).as_posix()))


def _file_name(runs: Sequence[ComparedRun]) -> str:
    """`cartoon-20260101-120000-ab12-20260102-…`; each style once."""
    parts: list[str] = []
    for each in runs:
        parts += ([] if each.run.style in parts else [each.run.style]) + [each.run.root.name]
    return "-".join(parts)


def _print(runs: Sequence[ComparedRun], against: Sequence[AgainstFirst]) -> None:
    for each in runs:
        stdout.print(f"{each.letter}  {each.run.style}  {shown(each.run.root)}", markup=False)
        if each.missing:
            stderr.print(f"{each.letter}: not done: {', '.join(each.missing)}; compared without", markup=False)
    for title, rows in (("settings that differ", setting_rows([each.spec for each in runs])), ("", outcome_rows(runs))):
        if rows:
            table = Table(title, *(each.letter for each in runs), title_justify="left")
            for row in rows:
                table.add_row(row.name, *(escape(value) for value in row.values))
            stdout.print(table)
    if otherwise := sampled_otherwise(runs):
        stderr.print(f"sampled otherwise ({', '.join(otherwise)}): part of the difference is that", markup=False)
    for other in against:
        if other.differences:
            stdout.print(_scores(runs[0].letter, other))


def _scores(first: str, against: AgainstFirst) -> Table:
    table = Table("measure")
    for heading in (first, against.letter, f"{against.letter} − {first}"):
        table.add_column(heading, justify="right")
    table.add_column("95 % interval", max_width=44)
    table.add_column(f"{against.letter} is")
    for item in against.differences:
        places, found = decimals_of(item.metric), item.difference
        interval = (
            f"{found.low:+.{places}f} to {found.high:+.{places}f}"
            if found.low is not None
            else escape(found.note.removeprefix("no paired interval: "))
        )
        table.add_row(
            title_of(item.metric),
            _number(item.first, places),
            _number(item.second, places),
            _number(found, places, "+"),
            interval,
            _words(item),
        )
    return table


def _words(item: Difference) -> str:
    return difference_line(item) if item.meaningful else "meaningless"


def _number(estimate: Estimate, places: int, sign: str = "") -> str:
    return "not measured" if estimate.value is None else f"{estimate.value:{sign}.{places}f}"
