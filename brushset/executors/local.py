"""This machine, and nothing else: a process a run, as many at once as there are slots; or a process a share of the runs.

Who is killed is started anew in its slot. When we die with `kill -9` our children live on, until the next one that wants
their run stops them (brushset.workers); on any other way out none is left. A share is one `run-one` on several folders, whose
runs are trained in one pass: one that fails stops no other, and what kills the process is found by going on one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from brushset.executors.slots import Environment, Slots
from brushset.executors.standing import Judge, attempt, hand_over, newest_log, next_log, run_command_line
from brushset.files import link_or_copy
from brushset.protocols import Handle, Standing, Task
from brushset.workers import note_cancelled, read_workers

Share = Sequence[Handle]


class LocalExecutor:
    """Runs tasks in slots, each of which is an environment: a GPU, a share of the cores. `divide` says what goes together:
    by default nothing.
    """

    name = "local"
    poll_every_s = 0.5
    outlives = False

    def __init__(
        self,
        slots: Sequence[Environment],
        max_retries: int,
        divide: Callable[[Share], Sequence[Share]] | None = None,
    ) -> None:
        self._slots, self._max_retries, self._divide = Slots(slots), max_retries, divide
        self._judge = Judge()
        self._over: set[Handle] = set()
        self._together: set[Handle] = set()

    def submit(self, tasks: Sequence[Task]) -> list[Handle]:
        """Queues them in this process."""
        handles = hand_over(tasks, self.name)
        for share in self._divide(handles) if self._divide else [[handle] for handle in handles]:
            self._together.update(share if len(share) > 1 else ())
            self._slots.put(partial(self._work, share))
        return handles

    def poll(self, handles: Sequence[Handle]) -> list[Standing]:
        """By the runs' own records: who has ended is over, whoever else its process still works on."""
        self._slots.raise_broken()
        return [self._judge.standing(handle, over=self._is_over(handle)) for handle in handles]

    def cancel(self, handle: Handle) -> None:
        """Stops its whole tree where it runs; where it waits it will not begin. One of a share stops at its next look, and
        those beside it go on from their states, each by itself.
        """
        note_cancelled(handle.task.run)
        if handle not in self._together:
            self._slots.stop([newest_log(handle.task.run)])

    def logs(self, handle: Handle) -> Path:
        """The newest process's."""
        return newest_log(handle.task.run)

    def close(self) -> None:
        """Stops all that runs."""
        self._slots.close()

    def _work(self, share: Share, environment: Environment) -> None:
        """One share in one slot, as often as its deaths allow; after a death each by itself, so that whoever it was that
        killed the process dies alone.
        """
        waiting = [share]
        while waiting and not self._slots.stopping.is_set():
            some = [handle for handle in waiting.pop(0) if not read_workers(handle.task.run).cancelled]
            if some:
                self._attempt(some, environment)
            waiting += [[handle] for handle in some if self._may_go_on(handle)]
        self._over.update(share)

    def _attempt(self, share: Share, environment: Environment) -> None:
        """One process for all of a share; each of its runs gets what it said."""
        first, runs = share[0], [handle.task.run for handle in share]
        log = next_log(runs[0])
        if len(share) > 1:
            argv = run_command_line(runs, first.task.stages, first.task.argv[0])
            first = Handle(Task(runs[0], argv, first.task.stages), first.submission)
        attempt(first, environment, self._slots.command)
        for run in runs[1:] if log.is_file() else ():
            link_or_copy(log, next_log(run))

    def _may_go_on(self, handle: Handle) -> bool:
        """Whether it shall begin anew; not where it has been submitted anew meanwhile, which is another's to follow."""
        workers = read_workers(handle.task.run)
        mine = workers.submission is not None and workers.submission.submission == handle.submission
        return mine and workers.may_go_on(self._max_retries)

    def _is_over(self, handle: Handle) -> bool:
        workers = read_workers(handle.task.run)
        ended = bool(workers.starts) and workers.worker is None and not self._may_go_on(handle)
        return handle in self._over or ended


def divide_evenly(handles: Share, count: int, weigh: Callable[[Handle], float]) -> list[Share]:
    """At most `count` shares of about the same weight (the heaviest first, to whoever has least), each in their order."""
    shares: list[list[Handle]] = [[] for _ in range(count)]
    weights = [0.0] * count
    for handle in sorted(handles, key=lambda each: -weigh(each)):
        least = weights.index(min(weights))
        shares[least].append(handle)
        weights[least] += weigh(handle)
    places = {handle: place for place, handle in enumerate(handles)}
    return [sorted(share, key=places.__getitem__) for share in shares if share]
