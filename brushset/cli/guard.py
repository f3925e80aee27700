"""The frame around every command: signals become errors, errors become one line and an exit code.

SIGINT and SIGTERM raise `Interrupted` once, wherever the main thread is; whoever runs a child process stops its whole
tree on the way out. A second signal meanwhile changes nothing: the tree is being stopped already. A training that can
save where it is gets to do so first (brushset.stopping).
"""

from __future__ import annotations

import json
import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import typer
from rich.console import Console

from brushset.cli.console import ConsoleListener
from brushset.cli.options import Options
from brushset.errors import BrushsetError, Interrupted, TrainerFailed
from brushset.log import EventLog, Listener
from brushset.paths import cache_dir
from brushset.stopping import note_stop

# typer carries its own copy of click; the base of its usage errors has no public name there.
_CommandLineError: Any = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")

_PIPED_COLUMNS = 160  # rich takes 80 where there is no terminal, which folds the tables

stdout = Console(soft_wrap=True, highlight=False, emoji=False, width=None if sys.stdout.isatty() else _PIPED_COLUMNS)
stderr = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)


class AlreadyTold(BrushsetError):
    """Carries the exit code of a failure that the user has been told of."""

    def __init__(self, failure: BrushsetError) -> None:
        super().__init__(str(failure))
        self.exit_code = failure.exit_code


def guarded(app: typer.Typer, argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit code. Every error is told in one line on stderr."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _raise_interrupted)
    try:
        code = app(args=list(argv), standalone_mode=False)
    except Interrupted as error:
        return tell(error, as_json="--json" in argv)
    except AlreadyTold as error:
        return error.exit_code
    except BrushsetError as error:
        return tell(error, as_json="--json" in argv)
    except _CommandLineError as error:
        _say(f"{error.format_message()}; see: orchestrate.py --help")
        return 2
    except BrokenPipeError:
        return 0
    except Exception as error:  # noqa: BLE001  the last line of defence: a bug is told like any other error
        return tell(BrushsetError(unforeseen(error)), as_json="--json" in argv)
    return code if isinstance(code, int) else 0


def listen(options: Options, stages: int, *also: Listener) -> tuple[EventLog, ConsoleListener | None]:
    """The event log of a command: bars for people, or JSON Lines on stdout. `also` hear it too."""
    if options.json:
        return EventLog(print_event, *also), None
    listener = ConsoleListener(stderr, stages)
    return EventLog(listener, *also), listener


def print_event(event: str, fields: Mapping[str, object]) -> None:
    """One event as one line of JSON on stdout."""
    line = json.dumps({"time": round(time.time(), 3), "event": event, **fields}, default=str, ensure_ascii=False)
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def tell(error: BrushsetError | Interrupted, *, as_json: bool) -> int:
    """Tells an error; returns its exit code."""
    if as_json:
        detail = {"detail": error.detail} if isinstance(error, TrainerFailed) and error.detail else {}
        print_event("error", {"message": str(error), "exit_code": error.exit_code, **detail})
    _say(str(error))
    if isinstance(error, TrainerFailed) and error.detail:
        stderr.print(error.detail, style="dim", markup=False)
    elif isinstance(error, BrushsetError) and (error.detail or error.__cause__):
        _keep_trace(error)
    return error.exit_code


def unforeseen(error: BaseException) -> str:
    """Keeps the trace of a bug in the user's cache, and says where, in one line."""
    return f"{type(error).__name__}: {error}; this is a bug of ours, its trace is in {_keep_trace(error)}"


def _keep_trace(error: BaseException) -> Path:
    """The newest error's trace and detail, in the user's cache; a run keeps its own in logs/error.log."""
    path = cache_dir() / "error.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    path.write_text(f"{trace}\n{getattr(error, 'detail', '')}\n", encoding="utf-8")
    return path


def _say(message: str) -> None:
    for line in message.splitlines() or [""]:
        stderr.print(f"error: {line}", style="red", markup=False)


def _raise_interrupted(signum: int, _frame: FrameType | None) -> None:
    if note_stop(signum):
        return
    for again in (signal.SIGINT, signal.SIGTERM):
        signal.signal(again, signal.SIG_IGN)
    raise Interrupted(signum)
