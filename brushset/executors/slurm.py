"""Slurm, by plain sbatch: one array of jobs a submission, no Python package, no accounting needed.

The batch script is the same for every run: it takes a list of runs and the array's index, so that no name and no caption
ever reaches a shell. In the job `serve` follows our command. Two minutes before a time limit Slurm sends SIGTERM, the
command saves what it can, and the job puts itself back into the queue; so it does where the command was killed, as often
as the run's own record allows. Slurm itself requeues what a lost node held.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

from brushset.errors import EnvironmentProblem, Interrupted
from brushset.executors.standing import Judge, attempt, hand_over, newest_log
from brushset.files import read_json, write_atomic, write_json
from brushset.paths import PROJECT, RunPaths, RunsDir
from brushset.process import child_env
from brushset.protocols import Handle, Standing, Task
from brushset.spec import SlurmSection
from brushset.workers import MOST_STARTS, note_cancelled, note_submitted, read_workers

_LIMIT_S = 60
_GONE = {
    "", "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT",
}  # fmt: skip
_BODY = """#!/bin/bash -l
# One run of a list. The words behind this script are the command; which run it is says the array's index.
exec >> "$SLURM_ARRAY_TASK_ID.log" 2>&1
{setup}exec "$@" "$SLURM_ARRAY_TASK_ID"
"""


class SlurmExecutor:
    """Submits to the cluster that sbatch knows. Its jobs outlive us."""

    name = "slurm"
    poll_every_s = 10.0  # a controller serves many
    outlives = True

    def __init__(self, settings: SlurmSection, max_retries: int) -> None:
        self._settings, self._max_retries = settings, max_retries
        self._judge = Judge()

    def submit(self, tasks: Sequence[Task]) -> list[Handle]:
        """Submits one array."""
        if not tasks:
            return []
        submission = hand_over(tasks, self.name)[0].submission
        folder = RunsDir(tasks[0].run.root.parent.parent).submission(submission)
        runs = [{"root": str(task.run.root), "argv": task.argv} for task in tasks]
        write_json(folder / "runs.json", {"submission": submission, "max_retries": self._max_retries, "runs": runs})
        write_atomic(folder / "job.sh", batch_script(self._settings))
        array = _ask(sbatch_argv(self._settings, folder, len(tasks)), env=_own_environment()).strip().partition(";")[0]
        handles = [Handle(task, submission, f"{array}_{index}") for index, task in enumerate(tasks)]
        for handle in handles:
            note_submitted(handle.task.run, submission=submission, executor=self.name, job=handle.job)
        return handles

    def poll(self, handles: Sequence[Handle]) -> list[Standing]:
        """By squeue, then by the runs' own records. A controller that does not answer is no news."""
        try:
            told = _ask(["squeue", "--me", "-h", "-r", "-t", "all", "-o", "%i|%T"]).split()
        except EnvironmentProblem:
            return [self._judge.standing(handle, over=False) for handle in handles]
        states = dict(line.split("|", 1) for line in told)
        return [self._standing(handle, states.get(handle.job, "")) for handle in handles]

    def cancel(self, handle: Handle) -> None:
        """Takes it out of the queue, or off its node."""
        note_cancelled(handle.task.run)
        _ask(["scancel", handle.job])

    def logs(self, handle: Handle) -> Path:
        """The newest process's; before there is one, what the job itself said."""
        log, run = newest_log(handle.task.run), handle.task.run
        early = RunsDir(run.root.parent.parent).submission(handle.submission) / f"{handle.job.rpartition('_')[2]}.log"
        return log if log.is_file() else early

    def close(self) -> None:
        """The jobs go on."""

    def _standing(self, handle: Handle, state: str) -> Standing:
        over = state in _GONE
        if over and read_workers(handle.task.run).may_go_on(self._max_retries) and _requeue(handle.job):
            over = False  # its job died with it, so that nobody there could ask
        standing = self._judge.standing(handle, over=over)
        if standing.state != "failed":
            return standing
        return replace(standing, words=f"{standing.words}; Slurm: {state or _accounted(handle.job) or 'gone'}")


def batch_script(settings: SlurmSection) -> str:
    """The script of every job: the user's own lines of set-up, and one that is always the same."""
    return _BODY.format(setup="".join(f"{line}\n" for line in settings.setup))


def sbatch_argv(settings: SlurmSection, folder: Path, count: int) -> list[str]:
    """The command that submits `count` runs listed in `folder`."""
    at_once = f"%{settings.at_once}" if settings.at_once else ""
    given = {key: getattr(settings, key) for key in ("partition", "account", "qos", "time", "gres", "mem")}
    options = [f"--{key}={value}" for key, value in given.items() if value]
    command = [*settings.container, "env", f"PYTHONPATH={PROJECT}", settings.python or sys.executable, "-m", __name__]
    return [
        "sbatch", "--parsable", "--job-name=brushset", f"--array=0-{count - 1}{at_once}", "--nodes=1", "--ntasks=1",
        f"--cpus-per-task={settings.cpus_per_task}", "--requeue", "--open-mode=append", "--signal=B:TERM@120",
        f"--chdir={folder}", "--output=/dev/null", *options, *settings.sbatch,
        str(folder / "job.sh"), *command, str(folder / "runs.json"),
    ]  # fmt: skip


def serve(list_file: Path, index: int, environ: Mapping[str, str]) -> None:
    """One attempt, in a job; afterwards the job goes back into the queue where another one is due."""
    listed = read_json(list_file)
    entry = listed["runs"][index]
    run = RunPaths(Path(entry["root"]))
    if read_workers(run).cancelled:
        return
    try:
        attempt(Handle(Task(run, tuple(entry["argv"]), ()), listed["submission"]), environ)
    finally:
        signal.signal(
            signal.SIGTERM, signal.SIG_IGN
        )  # `scontrol requeue` sends one to all of the job: no failure of ours
        restarts = int(environ.get("SLURM_RESTART_COUNT", "0"))
        if read_workers(run).may_go_on(listed["max_retries"]) and restarts < MOST_STARTS:
            _requeue(f"{environ['SLURM_ARRAY_JOB_ID']}_{index}", only="RUNNING")


def _requeue(job: str, only: str = "") -> bool:
    """Puts a job back into the queue; `only` where it is in that state, since one that was cancelled would rise again."""
    try:
        if only and _ask(["squeue", "-h", "-j", job, "-o", "%T"]).strip() != only:
            return False
        _ask(["scontrol", "requeue", job])
    except EnvironmentProblem:
        return False
    return True


def _accounted(job: str) -> str:
    """What accounting says of a job that the controller has forgotten; "" where there is no accounting."""
    try:
        return _ask(["sacct", "-n", "-X", "-P", "-j", job, "-o", "State"]).strip().splitlines()[-1]
    except (EnvironmentProblem, IndexError):
        return ""


def _own_environment() -> dict[str, str]:
    """What jobs inherit: by allow-list, since the controller keeps it on its disk; a login shell makes the rest."""
    slurm = {key: value for key, value in os.environ.items() if key.startswith(("SLURM_CONF", "SBATCH_"))}
    return child_env(slurm)


def _ask(argv: Sequence[str], env: Mapping[str, str] | None = None) -> str:
    """What one of Slurm's programs says.

    Raises:
        EnvironmentProblem: it is not there, does not answer, or refuses.
    """
    try:
        answer = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    except FileNotFoundError as error:
        raise EnvironmentProblem(
            f"--executor slurm: {argv[0]} is not on PATH; fix: a machine of the cluster"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise EnvironmentProblem(f"{argv[0]}: no answer within {_LIMIT_S} s") from error
    if answer.returncode:
        said = "; ".join((answer.stderr or answer.stdout).split("\n")).strip("; ") or f"exit code {answer.returncode}"
        fix = "; fix: what [executor.slurm] asks for" if argv[0] == "sbatch" else ""
        raise EnvironmentProblem(f"{argv[0]}: {said.removeprefix(f'{argv[0]}: ')}{fix}")
    return answer.stdout


def _stop(signum: int, _frame: FrameType | None) -> None:
    raise Interrupted(signum)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)
    try:
        serve(Path(sys.argv[1]), int(sys.argv[2]), os.environ)
    except Interrupted as stopped:
        sys.exit(stopped.exit_code)
