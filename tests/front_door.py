"""The command line called in this process: what a command says and leaves, without paying seconds of imports each time."""

from __future__ import annotations

import contextlib
import io
import signal
from dataclasses import dataclass

import orchestrate
from brushset.cli.guard import guarded


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    returncode: int
    stdout: str
    stderr: str


def call(*argv: str) -> Done:
    """What `orchestrate.py` does with these words; signals are whose they were afterwards."""
    said, errors = io.StringIO(), io.StringIO()
    kept = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
            code = guarded(orchestrate.app, argv)
    finally:
        for signum, handler in kept.items():
            signal.signal(signum, handler)
    return Done(code, said.getvalue(), errors.getvalue())
