"""`cancel` and `resume`: whoever works on a run stops, its state saved; and goes on, wherever its spec says."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Sequence
from typing import Any

from brushset.cli.devices import see_only
from brushset.cli.dispatch import machine_slots
from brushset.cli.guard import AlreadyTold, print_event, stdout
from brushset.cli.lookafter.find import find_run
from brushset.cli.lookafter.state import RunState, read_state
from brushset.cli.options import Options
from brushset.cli.sweeps.shown import Progress
from brushset.errors import BrushsetError, PartlyFailed, UsageError
from brushset.executors import make_executor
from brushset.executors.slurm import SlurmExecutor
from brushset.executors.standing import last_handle, run_task
from brushset.files import shown
from brushset.load import load_style
from brushset.paths import RunPaths, RunsDir
from brushset.pipeline import Stage
from brushset.protocols import Standing
from brushset.spec import ExecutorSection
from brushset.sweeps.drive import carry_out
from brushset.workers import WorkerEvent, find_process, note_cancelled, read_workers

_PATIENCE_S = 90.0  # a state of a large adapter on a slow disk
_POLL_S = 0.2


def cancel_runs(stages: Sequence[Stage[Any]], options: Options, which: Sequence[str], *, yes: bool) -> None:
    """Stops whoever works on these runs, and keeps executors from starting on them.

    Raises:
        UsageError: no such run; or its process also works on others, and `yes` does not say that they may stop too.
    """
    runs_dir = RunsDir(options.runs_dir.absolute())
    runs = [find_run(text, runs_dir) for text in which]
    if not yes:
        _refuse_company(runs, runs_dir)
    for run in runs:
        told = _cancel(run, [stage.name for stage in stages])
        if options.json:
            print_event("cancel", {"folder": str(run.root), "text": told})
        else:
            stdout.print(f"{shown(run.root)}: {told}", markup=False)


def resume_runs(stages: Sequence[Stage[Any]], options: Options, which: Sequence[str]) -> None:
    """Has these runs done to their end: by the executor of their spec, or the one asked for.

    Raises:
        PartlyFailed: of several not all went well; of a single one its own failure.
    """
    names = [stage.name for stage in stages]
    names = names[: names.index(options.until) + 1] if options.until in names else names
    runs = [find_run(text, RunsDir(options.runs_dir.absolute())) for text in which]
    see_only(options.gpus)
    settings = _executor_of(runs, options)
    with contextlib.closing(make_executor(settings, machine_slots(options))) as executor:
        if executor.outlives:
            for handle in executor.submit([run_task(run, names, settings.python) for run in runs]):
                stdout.print(f"{shown(handle.task.run.root)}: submitted, job {handle.job}", markup=False)
            return
        progress = Progress({run: f"{run.style} {run.run_id}" for run in runs}, options.json, len(runs))
        ended = carry_out(executor, runs, names, progress)
    failed = [each for each in ended.values() if each.state != "finished"]
    if failed:
        raise AlreadyTold(_failure(failed, of=len(ended)))


def _cancel(run: RunPaths, stages: Sequence[str]) -> str:
    state = read_state(run)
    if state is None or state.state == "done":
        return "is done, nothing to cancel"
    note_cancelled(run)
    if state.executor == "slurm" and (handle := last_handle(run, stages)) and handle.job:
        with contextlib.suppress(BrushsetError):  # the job may be over, and the controller elsewhere
            SlurmExecutor(ExecutorSection().slurm, 0).cancel(handle)
    worker = read_workers(run).worker
    if worker is None:
        return "cancelled; nobody worked on it"
    return _stop(run, worker, state)


def _stop(run: RunPaths, worker: WorkerEvent, state: RunState) -> str:
    """Asks who works on it to stop, and waits where that is on this machine."""
    process = find_process(worker)
    if process is None:
        if state.state == "dead":
            return "cancelled; its process was gone already"
        return f"cancelled; process {worker.pid} on {worker.host} stops at its next step"
    process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + _PATIENCE_S
    while find_process(worker) is not None and read_workers(run).worker is not None:
        if time.monotonic() > deadline:
            return f"cancelled; process {worker.pid} still lives, and stops at its next step"
        time.sleep(_POLL_S)
    return f"cancelled; process {worker.pid} has stopped"


def _refuse_company(runs: Sequence[RunPaths], runs_dir: RunsDir) -> None:
    """Raises UsageError where a process that would be stopped trains others in the same pass."""
    asked = {run.root for run in runs}
    everyone = [each for name in runs_dir.styles() for each in runs_dir.runs_of(name)]
    at_work = {each.root: worker for each in everyone if (worker := read_workers(each).worker) and find_process(worker)}
    wrong = []
    for run in runs:
        mine = at_work.get(run.root)
        others = [root for root, worker in at_work.items() if mine and worker.pid == mine.pid and root not in asked]
        if mine and others:
            wrong.append(
                f"{shown(run.root)}: process {mine.pid} trains {len(others)} others in the same pass, such as "
                f"{shown(others[0])}; fix: --yes stops them all, their states saved"
            )
    if wrong:
        raise UsageError.of_many(wrong)


def _executor_of(runs: Sequence[RunPaths], options: Options) -> ExecutorSection:
    """The executor that all of them name; `--executor` is laid over it."""
    found = [load_style(run.spec).executor for run in runs]
    if len({each.use for each in found}) > 1 and options.executor is None:
        raise UsageError("resume: these runs name different executors; fix: --executor, or one after the other")
    if options.executor is None:
        return found[0]
    return ExecutorSection.model_validate({**found[0].model_dump(), "use": options.executor})


def _failure(failed: Sequence[Standing], *, of: int) -> BrushsetError:
    words = [each.words or each.state for each in failed]
    if of > 1:
        return PartlyFailed.of_many(words)
    error = BrushsetError(words[0])
    error.exit_code = failed[0].exit_code or 5
    return error
