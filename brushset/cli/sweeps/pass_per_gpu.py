"""Runs of a sweep on several GPUs: divided among them, and on each trained in one pass, by a process of its own.

A GPU's share is one `run-one` on several run folders. What kills that process stops the share, which begins anew and goes on
from its states, as often as each run's own record allows; a run that fails stops no other. A second process would not be
faster on the same GPU: that is what `--parallel` is for, which packs nothing.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from brushset.executors.slots import Environment, Slots
from brushset.executors.standing import Judge, attempt, newest_log, next_log, run_command_line
from brushset.files import link_or_copy
from brushset.paths import RunPaths
from brushset.protocols import Handle, Standing, Task
from brushset.workers import note_cancelled, note_submitted, read_workers


class PassPerGpu:
    """Each slot is the environment of a GPU; `weigh` says how much work a run is."""

    name = "local"
    poll_every_s = 0.5
    outlives = False

    def __init__(self, slots: Sequence[Environment], max_retries: int, weigh: Callable[[RunPaths], float]) -> None:
        self._count, self._max_retries, self._weigh = len(slots), max_retries, weigh
        self._slots = Slots(slots)
        self._judge = Judge()
        self._over: set[Handle] = set()

    def submit(self, tasks: Sequence[Task]) -> list[Handle]:
        """Divides them, and queues each share in this process."""
        submission = secrets.token_hex(4)
        handles = [Handle(task, submission) for task in tasks]
        for handle in handles:
            note_submitted(handle.task.run, submission=submission, executor=self.name)
        for share in divide(handles, self._count, lambda handle: self._weigh(handle.task.run)):
            self._slots.put(partial(self._work, share))
        return handles

    def poll(self, handles: Sequence[Handle]) -> list[Standing]:
        """By the runs' own records: who has ended is over, whoever else its process still works on."""
        self._slots.raise_broken()
        return [self._judge.standing(handle, over=self._is_over(handle)) for handle in handles]

    def cancel(self, handle: Handle) -> None:
        """It does not begin, or stops at its next look; those beside it go on from their states."""
        note_cancelled(handle.task.run)

    def logs(self, handle: Handle) -> Path:
        """The newest process's, once that has ended; meanwhile what the training says."""
        log = newest_log(handle.task.run)
        return log if log.is_file() else handle.task.run.train_log

    def close(self) -> None:
        """Stops all that runs."""
        self._slots.close()

    def _work(self, share: Sequence[Handle], environment: Environment) -> None:
        """One share on one GPU, as often as its deaths allow."""
        left = [handle for handle in share if not read_workers(handle.task.run).cancelled]
        while left and not self._slots.stopping.is_set():
            attempt_together(left, environment, self._slots)
            left = [handle for handle in left if read_workers(handle.task.run).may_go_on(self._max_retries)]
        self._over.update(share)

    def _is_over(self, handle: Handle) -> bool:
        workers = read_workers(handle.task.run)
        ended = bool(workers.starts) and workers.worker is None and not workers.may_go_on(self._max_retries)
        return handle in self._over or ended


def divide(handles: Sequence[Handle], count: int, weigh: Callable[[Handle], float]) -> list[list[Handle]]:
    """At most `count` shares of about the same weight (the heaviest first, to whoever has least), each in their order."""
    shares: list[list[Handle]] = [[] for _ in range(count)]
    weights = [0.0] * count
    for handle in sorted(handles, key=lambda each: -weigh(each)):
        least = weights.index(min(weights))
        shares[least].append(handle)
        weights[least] += weigh(handle)
    places = {handle: place for place, handle in enumerate(handles)}
    return [sorted(share, key=places.__getitem__) for share in shares if share]


def attempt_together(share: Sequence[Handle], environment: Environment, slots: Slots) -> None:
    """One process for all of a share; each of its runs gets what it said."""
    first = share[0]
    runs, task = [handle.task.run for handle in share], first.task
    argv = run_command_line(runs, task.stages, task.argv[0])
    log = next_log(task.run)
    attempt(Handle(Task(task.run, argv, task.stages), first.submission), environment, slots.command)
    for run in runs[1:] if log.is_file() else ():
        link_or_copy(log, next_log(run))
