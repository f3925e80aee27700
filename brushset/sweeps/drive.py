"""Takes the runs of a sweep to their end by an executor: what is finished is left alone, what already waits in a cluster's
queue is followed there, the rest is submitted.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence

from brushset.executors.standing import is_finished, last_handle, run_task
from brushset.paths import RunPaths
from brushset.protocols import Executor, Handle, Standing
from brushset.workers import read_workers

Standings = Mapping[RunPaths, Standing]
Watch = Callable[[Standings], None]
Follow = Callable[[Standings], Sequence[RunPaths]]


def carry_out(
    executor: Executor,
    runs: Sequence[RunPaths],
    stages: Sequence[str],
    watch: Watch,
    follow: Follow = lambda _: (),
    *,
    python: str = sys.executable,
) -> dict[RunPaths, Standing]:
    """Brings every run through all of `stages`; returns how each ended, failures among them.

    Args:
        executor: has them done.
        runs: in the order in which they shall begin.
        stages: that must be on record in each, and verify.
        watch: hears how they stand, now and then.
        follow: what else is to be done, asked whenever nothing waits for its turn.
        python: that runs it.
    """
    found: dict[RunPaths, Standing] = {}
    handles: dict[RunPaths, Handle] = {}
    more: Sequence[RunPaths] = runs
    while True:
        for run in more:
            if is_finished(run, stages):
                found[run] = Standing("finished", 0)
        fresh = [run for run in more if run not in found]
        handles |= _hand_over(executor, fresh, stages, python)
        open_ones = [run for run in handles if not found.get(run, Standing("waiting")).over]
        found |= zip(open_ones, executor.poll([handles[run] for run in open_ones]), strict=True)
        watch(found)
        waiting = any(each.state == "waiting" for each in found.values())
        more = [run for run in ([] if waiting else follow(found)) if run not in found]
        if not more:
            if all(each.over for each in found.values()):
                return found
            time.sleep(executor.poll_every_s)


def _hand_over(
    executor: Executor, runs: Sequence[RunPaths], stages: Sequence[str], python: str
) -> dict[RunPaths, Handle]:
    """Submits what does not wait in this engine's queue already; only a cluster's outlives the command that filled it."""
    held: dict[RunPaths, Handle] = {}
    for run in runs:
        handle, asked = last_handle(run, stages), read_workers(run).submission
        if executor.outlives and handle and handle.job and asked and asked.executor == executor.name:
            held[run] = handle
    if held:
        standings = executor.poll(list(held.values()))
        held = {
            run: held[run]
            for run, each in zip(list(held), standings, strict=True)
            if not each.over or each.state == "finished"
        }
    rest = [run for run in runs if run not in held]
    return (
        held | dict(zip(rest, executor.submit([run_task(run, stages, python) for run in rest]), strict=True))
        if rest
        else held
    )
