"""`queue`: commands for the night, kept on disk; each in a process of its own, and one that fails stops no other."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from brushset.cli.guard import AlreadyTold, print_event, stderr, stdout
from brushset.cli.options import Options, option_words
from brushset.cli.runs import resolve_style
from brushset.cli.sources import style_names
from brushset.cli.sweeps.ask import SweepAsk
from brushset.cli.sweeps.command import plan_sweep, show
from brushset.errors import BrushsetError, PartlyFailed, TrainerFailed, UsageError
from brushset.files import shown
from brushset.paths import PROJECT, RunsDir
from brushset.pipeline import Stage, require_stages
from brushset.process import STATE_PATIENCE_S, process_file, run_command, stop_orphan
from brushset.queue_folder import QueueFolder, Waiting

_NOT_KEPT = {"json", "dry_run"}  # of an entry: `queue run` says whether it speaks JSON


def add_command(stages: Sequence[Stage[Any]], options: Options, command: Sequence[str] = ()) -> None:
    """Puts the main command, or `all`, with these options at the end, once its settings are known to be right.

    Raises:
        UsageError: everything that is wrong with it.
    """
    if not command and options == Options(runs_dir=options.runs_dir):
        raise UsageError("queue add: nothing asked for; fix: the options of the main command, such as --style cartoon")
    require_stages([stage.name for stage in stages], options.until, options.force)
    wrong: list[str] = []
    for name in style_names(options):
        try:
            resolve_style(name, options, touch=False)
        except UsageError as error:  # noqa: PERF203 - all of them are told
            wrong += str(error).splitlines()
    if wrong:
        raise UsageError.of_many(wrong)
    _add(options, [*command, *option_words(options, _NOT_KEPT)])


def add_sweep(stages: Sequence[Stage[Any]], options: Options, ask: SweepAsk) -> None:
    """Puts a sweep at the end, and shows what it will take.

    Raises:
        UsageError: everything that is wrong with any run of it.
    """
    show(plan_sweep(stages, dataclasses.replace(options, dry_run=True), ask))
    _add(options, ["sweep", *option_words(options, _NOT_KEPT), *option_words(ask, {"yes"})])


def _add(options: Options, words: Sequence[str]) -> None:
    """`--dry-run` adds nothing."""
    if options.dry_run:
        stdout.print(f"would be added: {shlex.join(words)}", markup=False)
        return
    entry = _queue(options).add(words, Path.cwd())
    if options.json:
        print_event("queue_add", _fields(entry))
    else:
        stdout.print(f"{entry.number}: {shlex.join(entry.words)}", markup=False)


def list_queue(options: Options) -> None:
    """Prints what waits, and what failed."""
    queue = _queue(options)
    worker = queue.worker()
    if options.json:
        for entry in queue.entries():
            print_event("queue_entry", {**_fields(entry), "worker": worker})
        return
    table = Table("", "added", "state", "command", "last words")
    for entry in queue.entries():
        added = dt.datetime.fromtimestamp(entry.added_at).astimezone().strftime("%m-%d %H:%M")
        table.add_row(str(entry.number), added, _state(entry, worker), shlex.join(entry.words), entry.said)
    stdout.print(table if table.row_count else f"{options.runs_dir}: nothing in the queue")
    for entry in queue.entries():
        if entry.exit_code:
            stdout.print(f"{entry.number}: {shown(queue.log(entry))}", markup=False)
    if table.row_count:
        stdout.print(f"process {worker} works on it" if worker else "nobody works on it; fix: orchestrate.py queue run")


def remove_from_queue(options: Options, numbers: Sequence[int]) -> None:
    """Takes entries out; not one that is being worked on.

    Raises:
        UsageError: no such entry, or it is being worked on.
    """
    queue = _queue(options)
    worker, entries = queue.worker(), {entry.number: entry for entry in queue.entries()}
    at_work = [number for number in numbers if number in entries and _state(entries[number], worker) == "running"]
    if at_work:
        raise UsageError(
            f"{at_work[0]}: process {worker} works on it; fix: Ctrl-C there, or orchestrate.py cancel its run"
        )
    for number in numbers:
        queue.remove(number)
        stdout.print(f"{number}: removed", markup=False)


def run_queue(options: Options) -> None:
    """Works through the queue until nothing is left that has not been tried by this call; what is added meanwhile too.

    Raises:
        RunTaken: another process does.
        PartlyFailed: some failed; they stay in the queue.
    """
    queue = _queue(options)
    failed: dict[int, Waiting] = {}
    done = 0
    with queue.working():
        while entry := next((each for each in queue.entries() if each.number not in failed), None):
            entry = _do(queue, entry, as_json=options.json)
            if entry.exit_code:
                failed[entry.number] = entry
                queue.save(entry)
            else:
                done += 1
                with contextlib.suppress(UsageError):  # removed by hand meanwhile
                    queue.remove(entry.number)
    told = f"{done} done, {len(failed)} failed" + ("; still in the queue: orchestrate.py queue list" if failed else "")
    if options.json:
        print_event("queue_end", {"done": done, "failed": sorted(failed)})
    else:
        stdout.print(told, markup=False)
    if failed:
        raise AlreadyTold(PartlyFailed(told))


def _do(queue: QueueFolder, entry: Waiting, *, as_json: bool) -> Waiting:
    """One entry's command, to its end; returns the entry with how that was."""
    entry = entry.model_copy(update={"started_at": time.time(), "exit_code": None, "said": ""})
    queue.save(entry)
    argv = [sys.executable, str(PROJECT / "orchestrate.py"), *entry.words, *(["--json"] if as_json else [])]
    stderr.print(f"queue {entry.number}: {shlex.join(entry.words)}", style="bold", markup=False)
    log = queue.log(entry)
    stop_orphan(process_file(log))  # of a `queue run` that was killed
    last = ""

    def hear(line: str) -> None:
        nonlocal last
        last = line if line.startswith("error: ") or not last.startswith("error: ") else last
        if as_json and line.startswith("{"):
            sys.stdout.write(f"{line}\n")
        else:
            stderr.print(line, markup=False)

    try:
        run_command(
            argv,
            cwd=Path(entry.folder),
            env=dict(os.environ),
            log_path=log,
            on_line=hear,
            stop_patience_s=STATE_PATIENCE_S,
        )
    except TrainerFailed as error:
        return entry.model_copy(
            update={"exit_code": error.code or error.exit_code, "said": last.removeprefix("error: ")}
        )
    except BrushsetError as error:
        return entry.model_copy(update={"exit_code": error.exit_code, "said": str(error)})
    return entry.model_copy(update={"exit_code": 0})


def _state(entry: Waiting, worker: int | None) -> str:
    if entry.exit_code:
        return f"failed ({entry.exit_code})"
    return "running" if worker and entry.started_at is not None else "waiting"


def _fields(entry: Waiting) -> dict[str, Any]:
    return entry.model_dump(mode="json")


def _queue(options: Options) -> QueueFolder:
    return QueueFolder(RunsDir(options.runs_dir.absolute()).queue)
