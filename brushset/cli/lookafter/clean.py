"""`clean`: shows what could go and its size; removes it only with `--yes`."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from brushset.cli.guard import print_event, stdout
from brushset.cli.lookafter.leftovers import Leftover, find_leftovers
from brushset.cli.options import Options
from brushset.errors import EnvironmentProblem
from brushset.files import shown
from brushset.paths import RunsDir

Yes = Annotated[bool, typer.Option("--yes", help="Remove what was shown.")]
Pictures = Annotated[
    bool, typer.Option("--pictures", help="Also what older runs' weights can make again: evaluation, packages.")
]


def clean(options: Options, *, yes: bool, pictures: bool) -> None:
    """Shows the leftovers, and removes them where `yes` says so.

    Raises:
        EnvironmentProblem: something could not be removed.
    """
    runs = RunsDir(options.runs_dir.absolute())
    styles = options.style if options.style and "all" not in options.style else runs.styles()
    found = find_leftovers(runs, styles, pictures=pictures)
    wrong = [line for each in found if yes and (line := _remove(each, runs.root))]
    _show(found, removed=yes, as_json=options.json)
    if wrong:
        raise EnvironmentProblem.of_many(wrong)


def _show(found: Sequence[Leftover], *, removed: bool, as_json: bool) -> None:
    total = sum(each.size_bytes for each in found)
    if as_json:
        for each in found:
            fields = {"kind": each.kind, "path": str(each.path), "bytes": each.size_bytes, "why": each.why}
            print_event("leftover", {**fields, "removed": removed})
        return
    if not found:
        stdout.print("nothing to clean")
        return
    table = Table("what")
    table.add_column("where", overflow="fold")
    table.add_column("size", no_wrap=True)
    table.add_column("why it may go")
    for each in found:
        table.add_row(each.kind, escape(shown(each.path)), _size(each.size_bytes), each.why)
    stdout.print(table)
    stdout.print(f"{_size(total)} removed" if removed else f"{_size(total)} in all; nothing is removed without --yes")


def _remove(leftover: Leftover, root: Path) -> str:
    """Removes one; returns what went wrong. A link is removed, never what it leads to."""
    path = leftover.path
    assert path.parent.resolve().is_relative_to(root.resolve()), path
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        return f"{shown(path)}: cannot be removed: {error.strerror}"
    return ""


def _size(size: int) -> str:
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"
