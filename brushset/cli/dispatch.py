"""Runs that an executor does: where they go on this machine, handed over, followed to their ends.

What a person sees are changes of state: the runs' own progress is theirs to tell (`status`, `logs`).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence

from brushset.cli.devices import list_gpus, parse_gpus, slot_environment, visible_gpus
from brushset.cli.guard import tell
from brushset.cli.options import Options
from brushset.errors import BrushsetError, TrainerFailed, UsageError
from brushset.executors import make_executor
from brushset.executors.standing import run_task
from brushset.paths import RunsDir
from brushset.protocols import Emit, Executor, Standing, Task
from brushset.session import Ask, prepare_run
from brushset.spec import ExecutorSection

_CANCELLED = 130


def machine_slots(options: Options) -> list[dict[str, str]]:
    """The environment of each run at once on this machine: `--parallel` on each GPU that is meant, or on the cores."""
    gpus = parse_gpus(options.gpus) or visible_gpus(os.environ, list_gpus())
    count = options.parallel * max(1, len(gpus))
    return [slot_environment(slot, count, gpus=gpus, environ=os.environ) for slot in range(count)]


def run_elsewhere(asks: Sequence[Ask], known: Sequence[str], options: Options, emit: Emit) -> dict[str, BrushsetError]:
    """Has Ray or Slurm do what is asked, each on a run folder of its own; returns the failures, which have been told."""
    runs = RunsDir(options.runs_dir.absolute())
    tasks: dict[ExecutorSection, dict[str, Task]] = {}
    failures: dict[str, BrushsetError] = {}
    for ask in asks:
        if ask.force is not None:
            raise UsageError(f"--force {ask.force}: works in this process alone; fix: --executor local")
        run = prepare_run(ask.spec, ask.images, ask.engine_reason, runs)
        runs.point_latest(run)
        stages = known[: known.index(ask.until) + 1] if ask.until else known
        tasks.setdefault(ask.spec.executor, {})[ask.spec.name] = run_task(run, stages, ask.spec.executor.python)
    for settings, some in tasks.items():
        try:
            failures |= dispatch(some, settings, options, emit)
        except BrushsetError as error:  # noqa: PERF203  one engine that is not there stops no other
            failures |= dict.fromkeys(some, error)
    for failure in dict.fromkeys(failures.values()):
        tell(failure, as_json=options.json)
    return failures


def dispatch(
    tasks: Mapping[str, Task], settings: ExecutorSection, options: Options, emit: Emit
) -> dict[str, BrushsetError]:
    """Has an executor do the tasks; returns the failures by name, which are then to be told.

    Raises:
        EnvironmentProblem: the engine is not there, or refuses.
        Interrupted: a signal; what cannot live without us is stopped, a batch system's jobs go on.
    """
    with contextlib.closing(make_executor(settings, machine_slots(options))) as executor:
        standings = follow(executor, tasks, emit)
    return {name: error for name, each in standings.items() if (error := failure_of_task(name, each))}


def follow(executor: Executor, tasks: Mapping[str, Task], emit: Emit) -> dict[str, Standing]:
    """Hands the tasks over and waits until all are over; every change of one is an event."""
    handles = executor.submit(list(tasks.values()))
    known: dict[str, Standing] = {}
    while True:
        for (name, task), standing in zip(tasks.items(), executor.poll(handles), strict=True):
            if known.get(name) != standing:
                known[name] = standing
                where = {"folder": str(task.run.root), "executor": executor.name}
                emit("run_state", name=name, state=standing.state, words=standing.words, **where)
        if all(standing.over for standing in known.values()):
            return known
        time.sleep(executor.poll_every_s)


def failure_of_task(name: str, standing: Standing) -> BrushsetError | None:
    """A task that is over as an error with its exit code, or None where it is finished."""
    if standing.state == "finished":
        return None
    error = TrainerFailed(f"{name}: {standing.words}")
    error.exit_code = _CANCELLED if standing.state == "cancelled" else standing.exit_code or TrainerFailed.exit_code
    return error
