"""`validate` and `import`: Kohya TOMLs that somebody already has. Prints what brushset.kohya.check.validate finds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from brushset.cli.guard import AlreadyTold, print_event, stdout
from brushset.errors import UsageError
from brushset.files import shown, write_atomic
from brushset.kohya.check.findings import SEVERITIES, Finding
from brushset.kohya.check.validate import FileReport, validate_files
from brushset.kohya.import_style import ImportAsk, import_style
from brushset.paths import STYLES

_COLOURS = {"wrong": "red", "another script's": "yellow", "harmless": "dim"}


def validate(paths: Sequence[Path], *, as_json: bool) -> None:
    """Prints every finding on every file.

    Raises:
        UsageError: a file is not there; or something would be silently wrong, which has then been told.
    """
    reports = validate_files(paths)
    for report in reports:
        if as_json:
            print_event("file", {"file": report.file, "kind": report.kind, "what": report.what})
            for finding in report.findings:
                print_event("finding", {**dataclasses.asdict(finding), "table": finding.table})
        else:
            _show(report)
    wrong = sum(report.wrong for report in reports)
    summary = f"{len(reports)} files, {wrong} wrong" if len(reports) > 1 else f"{wrong} wrong"
    if as_json:
        print_event("summary", {"files": len(reports), "wrong": wrong, "exit_code": 2 if wrong else 0})
    elif len(reports) > 1:
        stdout.print(summary, markup=False)
    if wrong:
        raise AlreadyTold(UsageError(summary))


def import_files(paths: Sequence[Path], ask: ImportAsk, *, out: Path | None, as_json: bool) -> None:
    """Writes a style file from a pair of Kohya TOMLs, and says what could not be carried over.

    Raises:
        UsageError: the files are no such pair, or the style file is already there.
    """
    made = import_style(paths, ask)
    target = out or STYLES / f"{made.name}.toml"
    if target.exists():
        raise UsageError(f"{shown(target)}: is already there; fix: --name, or --out FILE, or remove it yourself")
    if out is not None and target.suffix != ".toml":
        raise UsageError(f"{shown(target)}: a style file ends in .toml")
    if target.stem != made.name:
        raise UsageError(f"{shown(target)}: a style file bears its style's name; fix: --name {target.stem}")
    write_atomic(target, made.text)
    if as_json:
        print_event("imported", {"file": str(target), "style": made.name, "notes": list(made.notes)})
        return
    stdout.print(f"{shown(target)}: style {made.name}, trigger {made.trigger}", markup=False)
    for note in made.notes:
        stdout.print(f"  {note}", markup=False)
    stdout.print(f"next: orchestrate.py configure --effective --style {made.name}", markup=False)


def _show(report: FileReport) -> None:
    counts = {severity: sum(item.severity == severity for item in report.findings) for severity in SEVERITIES}
    told = ", ".join(f"{count} {severity}" for severity, count in counts.items() if count) or "nothing to say"
    stdout.print(Text.assemble((report.file, "bold"), f"  {report.what}: {told}"))
    if not report.findings:
        return
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold", ratio=1)
    for finding in report.findings:
        table.add_row(
            str(finding.line or ""), Text(finding.severity, style=_COLOURS[finding.severity]), _explained(finding)
        )
    stdout.print(table, soft_wrap=False)


def _explained(finding: Finding) -> Text:
    text = Text()
    if finding.table:
        text.append(f"{finding.table} ", style="cyan")
    text.append(finding.text, style="bold" if finding.severity == "wrong" else "")
    if finding.effect:
        text.append(f"\n{finding.effect}")
    if finding.fix:
        text.append(f"\nfix: {finding.fix}", style="green")
    return text
