"""Runs of a sweep in this process, trained in one pass over one base: as an executor, which works while it is polled.

Those that the engine cannot train beside the others it trains after them. One that fails touches no other; what kills this
process stops all of them, and the same command goes on from their states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from brushset.cli.one_pass import run_in_one_pass
from brushset.cli.options import Options
from brushset.cli.sweeps.members import Member
from brushset.executors.standing import Judge
from brushset.paths import RunPaths
from brushset.pipeline import Stage
from brushset.protocols import Handle, Standing, Task
from brushset.session import Ask
from brushset.workers import note_cancelled


class OneProcess:
    """`members` are what the runs are made of."""

    name = "local"
    poll_every_s = 0.0
    outlives = False

    def __init__(
        self, members: Mapping[RunPaths, Member], stages: Sequence[Stage[Any]], options: Options, until: str
    ) -> None:
        self._members, self._stages, self._options, self._until = members, stages, options, until
        self._judge = Judge()
        self._waiting: list[Handle] = []

    def submit(self, tasks: Sequence[Task]) -> list[Handle]:
        """Keeps them for the next poll."""
        handles = [Handle(task, "") for task in tasks]
        self._waiting += handles
        return handles

    def poll(self, handles: Sequence[Handle]) -> list[Standing]:
        """Does all that waits, then says how it stands."""
        waiting, self._waiting = self._waiting, []
        if waiting:
            asks = [self._ask(handle.task.run) for handle in waiting]
            run_in_one_pass(asks, self._stages, self._options, lambda _event, _fields: None)
        return [self._judge.standing(handle, over=True) for handle in handles]

    def cancel(self, handle: Handle) -> None:
        """It does not begin, or stops at its next look."""
        note_cancelled(handle.task.run)

    def logs(self, handle: Handle) -> Path:
        """Its events: what is said here goes to the terminal."""
        return handle.task.run.events

    def close(self) -> None:
        """Nothing lives on."""

    def _ask(self, run: RunPaths) -> Ask:
        member = self._members[run]
        reason, label = member.engine_reason, member.label
        return Ask(member.spec, member.images, reason, until=self._until, run=run, label=label)
