"""This machine, and nothing else: a process a run, as many at once as there are slots.

Who is killed is started anew in its slot. When we die with `kill -9` our children live on, until the next one that wants
their run stops them (brushset.workers); on any other way out none is left.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from brushset.executors.slots import Environment, Slots
from brushset.executors.standing import Judge, attempt, newest_log
from brushset.protocols import Handle, Standing, Task
from brushset.workers import note_cancelled, note_submitted, read_workers


class LocalExecutor:
    """Runs tasks in slots, each of which is an environment: a GPU, a share of the cores."""

    name = "local"
    poll_every_s = 0.5
    outlives = False

    def __init__(self, slots: Sequence[Environment], max_retries: int) -> None:
        self._slots, self._max_retries = Slots(slots), max_retries
        self._judge = Judge()
        self._over: set[Handle] = set()

    def submit(self, tasks: Sequence[Task]) -> list[Handle]:
        """Queues them in this process."""
        submission = secrets.token_hex(4)
        handles = [Handle(task, submission) for task in tasks]
        for handle in handles:
            note_submitted(handle.task.run, submission=submission, executor=self.name)
            self._slots.put(partial(self._work, handle))
        return handles

    def poll(self, handles: Sequence[Handle]) -> list[Standing]:
        """By the runs' own records."""
        self._slots.raise_broken()
        return [self._judge.standing(handle, over=handle in self._over) for handle in handles]

    def cancel(self, handle: Handle) -> None:
        """Stops its whole tree where it runs; where it waits it will not begin."""
        note_cancelled(handle.task.run)
        self._slots.stop([newest_log(handle.task.run)])

    def logs(self, handle: Handle) -> Path:
        """The newest process's."""
        return newest_log(handle.task.run)

    def close(self) -> None:
        """Stops all that runs."""
        self._slots.close()

    def _work(self, handle: Handle, environment: Environment) -> None:
        """One task in one slot, as often as its deaths allow."""
        run = handle.task.run
        again = not read_workers(run).cancelled
        while again and not self._slots.stopping.is_set():
            attempt(handle, environment, self._slots.command)
            again = read_workers(run).may_go_on(self._max_retries)
        self._over.add(handle)
