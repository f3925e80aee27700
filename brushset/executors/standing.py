"""How a task stands, by its run folder; and one attempt at it, which is the same wherever it happens."""

from __future__ import annotations

import contextlib
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from brushset.errors import TrainerFailed
from brushset.manifest import read_manifest
from brushset.paths import PROJECT, RunPaths
from brushset.process import STATE_PATIENCE_S, run_command
from brushset.protocols import Handle, Standing, Task
from brushset.stage_records import load_record, outputs_hold
from brushset.workers import Workers, is_alive, note_submitted, read_workers

RunCommand = Callable[..., object]
_TAIL_BYTES = 4096


def run_task(run: RunPaths, stages: Sequence[str], python: str = sys.executable) -> Task:
    """The task of taking a prepared run through all of `stages`."""
    return Task(run, run_command_line([run], stages, python), tuple(stages))


def run_command_line(runs: Sequence[RunPaths], stages: Sequence[str], python: str) -> tuple[str, ...]:
    """Our own command that takes these runs through all of `stages`; of several, what can be is done for all at once."""
    folders = [str(run.root) for run in runs]
    return (python, str(PROJECT / "orchestrate.py"), "run-one", *folders, "--until", stages[-1])


def last_handle(run: RunPaths, stages: Sequence[str]) -> Handle | None:
    """What an executor was last asked for of this run, by whichever process; None where none was."""
    asked = read_workers(run).submission
    return Handle(run_task(run, stages), asked.submission, asked.job) if asked else None


def hand_over(tasks: Sequence[Task], executor: str) -> list[Handle]:
    """Gives them one submission, and writes it down with each run before any engine hears of it."""
    submission = secrets.token_hex(4)
    for task in tasks:
        note_submitted(task.run, submission=submission, executor=executor)
    return [Handle(task, submission) for task in tasks]


class Judge:
    """How tasks stand. Once one is over its outputs have been verified, and are not hashed again."""

    def __init__(self) -> None:
        self._over: dict[Handle, Standing] = {}

    def standing(self, handle: Handle, *, over: bool) -> Standing:
        """`over` says that the engine has no more to do with it."""
        if not over:
            return _unfinished(handle)
        if handle not in self._over:
            self._over[handle] = _ended(handle)
        return self._over[handle]


def _unfinished(handle: Handle) -> Standing:
    """At work is also who has just ended well, until the engine says so."""
    workers = read_workers(handle.task.run)
    mine = workers.last is not None and workers.last.submission == handle.submission
    if mine and workers.worker:
        return Standing("running" if is_alive(workers.worker) is not False else "waiting")
    return Standing("running" if mine and workers.exit_code == 0 else "waiting")


def _ended(handle: Handle) -> Standing:
    run, workers = handle.task.run, read_workers(handle.task.run)
    if is_finished(run, handle.task.stages):
        return Standing("finished", 0)
    if workers.cancelled:
        return Standing("cancelled", words="cancelled")
    return Standing("failed", workers.exit_code, _last_words(run, workers))


def is_finished(run: RunPaths, stages: Sequence[str]) -> bool:
    """Whether every one of these stages is on record there, and its outputs verify."""
    records = [load_record(run, stage) for stage in stages]
    return all(record is not None and outputs_hold(run, record) for record in records)


def attempt(handle: Handle, env: Mapping[str, str], run: RunCommand = run_command) -> None:
    """Starts a task's command and follows it to its end, however that comes; how it ended stands in the run folder.

    Raises:
        EnvironmentProblem: it could not even be started.
    """
    argv = [*handle.task.argv, "--submission", handle.submission]
    with contextlib.suppress(TrainerFailed):
        run(
            argv, cwd=PROJECT, env=env, log_path=next_log(handle.task.run), on_line=lambda _: None,
            stop_patience_s=STATE_PATIENCE_S,
        )  # fmt: skip


def next_log(run: RunPaths) -> Path:
    """Where the next process on this run says what it says."""
    return run.worker_log(len(list(run.logs.glob("worker-*.log"))) + 1)


def newest_log(run: RunPaths) -> Path:
    """Where the newest one does; the file may not be there yet."""
    return run.worker_log(max(1, len(list(run.logs.glob("worker-*.log")))))


def _last_words(run: RunPaths, workers: Workers) -> str:
    """Why a run failed: what run.json says of the last one that worked on it, else the last line that one left."""
    manifest = read_manifest(run)
    if workers.exit_code and manifest is not None and manifest.error:
        return manifest.error.splitlines()[0]
    log = newest_log(run)
    lines = log.read_bytes()[-_TAIL_BYTES:].decode("utf-8", "replace").split("\n") if log.is_file() else []
    said = [line.strip() for line in lines if line.strip()]
    how = "its process died" if workers.starts else "it never began"
    return f'{how}; last line "{said[-1][:200]}"' if said else how
