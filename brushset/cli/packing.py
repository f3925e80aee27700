"""Several styles at once on one machine: each in a process of its own, started by our own command line.

A training at batch 2 to 4 leaves a large GPU waiting for the host between kernels, so several overlap. A process a
style is what keeps them apart: own run folder, own lock, own memory; one that fails or is killed touches no other.
Children speak JSON Lines, which are handed on as if the events were ours.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from brushset.cli.options import Options, option_words
from brushset.errors import BrushsetError, TrainerFailed
from brushset.executors.slots import Slots
from brushset.paths import PROJECT, RunsDir
from brushset.process import process_file, stop_orphan

_OWN_OPTIONS = {"style", "until", "force", "parallel", "executor", "gpus", "mps", "json"}
_SIGNALLED = (130, 143)
_PATIENCE_S = 2.0


class Relay(Protocol):
    """Hears what children say."""

    def heard(self, style: str, event: str, fields: Mapping[str, object]) -> None:
        """An event of one style's child."""
        ...

    def failed(self, style: str, error: BrushsetError) -> None:
        """One style's child failed; told once."""
        ...


def child_command(options: Options, style: str, *, until: str | None, force: str | None) -> list[str]:
    """Our own command line for one style, with every option as it was given."""
    own = ["--style", style]
    own += ["--until", until] if until else []
    own += ["--force", force] if force else []
    return [sys.executable, str(PROJECT / "orchestrate.py"), *own, *option_words(options, _OWN_OPTIONS), "--json"]


class Pack:
    """Runs children, at most as many at once as there are slots.

    Args:
        runs: where each child's output is kept, beside its style's runs.
        relay: hears events and failures, from several threads.
    """

    def __init__(self, runs: RunsDir, relay: Relay) -> None:
        self._runs, self._relay = runs, relay
        self._failures: dict[str, BrushsetError] = {}

    def run(
        self, commands: Mapping[str, Sequence[str]], slots: Sequence[Mapping[str, str]]
    ) -> dict[str, BrushsetError]:
        """Runs all commands to their end, by style; returns the failures. Each slot is an environment.

        Raises:
            Interrupted: a signal; all children, and what they had started, are gone then.
        """
        with contextlib.closing(Slots(slots)) as working:
            for style, argv in commands.items():
                working.put(partial(self._run_one, working, style, argv))
            working.wait()
        return {style: self._failures[style] for style in commands if style in self._failures}

    def _run_one(self, slots: Slots, style: str, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        log = self._runs.child_log(style)
        stop_orphan(process_file(log))  # of a parent that was killed
        told: list[BrushsetError] = []

        def read(line: str) -> None:
            event, fields = parse_event(line)
            if event == "error":
                told.append(failure_of(style, fields))
            elif event:
                self._relay.heard(style, event, {"style": style, **fields})

        try:
            slots.command(argv, cwd=Path.cwd(), env=environment, log_path=log, on_line=read)
        except BrushsetError as error:
            failure = told[-1] if told else failure_of(style, {"message": str(error), "exit_code": error.exit_code})
            signalled = failure.exit_code in _SIGNALLED and slots.stopping.wait(_PATIENCE_S)
            if not signalled and not slots.stopping.is_set():
                self._failures[style] = failure
                self._relay.failed(style, failure)


def parse_event(line: str) -> tuple[str, dict[str, object]]:
    """An event and its fields; "" for any other line that a child writes."""
    try:
        said = json.loads(line) if line.startswith("{") else None
    except ValueError:
        said = None
    if not isinstance(said, dict) or not isinstance(said.get("event"), str):
        return "", {}
    event = said.pop("event")
    said.pop("time", None)
    return event, said


def failure_of(style: str, fields: Mapping[str, object]) -> BrushsetError:
    """An `error` event of one of several as an error with its exit code, each line under the style's name."""
    code = int(str(fields.get("exit_code", 1)))
    lines = str(fields.get("message", "")).splitlines()
    message = "\n".join(line if line.startswith(f"{style}: ") else f"{style}: {line}" for line in lines)
    kind = TrainerFailed if code == TrainerFailed.exit_code else BrushsetError  # a trainer's last lines are shown
    error = kind(message, detail=str(fields.get("detail", "")))
    error.exit_code = code
    return error
