"""A run folder is one process's at a time, on one machine or on several.

A lock says so at once, and the system frees it however the process dies. But file systems that several machines share may
not hold one between them, and a machine that was given up may go on writing. So the run is that process's whose `started`
stands last in workers.jsonl; a worker looks there every few seconds and before all that it publishes, and stops where the
run is no longer its own.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import filelock
import psutil

from brushset.errors import BrushsetError, EnvironmentProblem, Interrupted, RunTaken
from brushset.paths import RunPaths
from brushset.process import STATE_PATIENCE_S
from brushset.protocols import Emit
from brushset.trees import stop_processes
from brushset.workers import (
    WorkerEvent,
    Workers,
    append,
    event_of_ours,
    find_process,
    is_abandoned,
    is_alive,
    read_workers,
)

LOOK_EVERY_S = 2.0
LOCK_PATIENCE_S = 120.0  # an NFS server frees the lock of a machine that fell silent after 90
_POLL_S = 0.2
_SHARED = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "fuse.glusterfs", "lustre", "beegfs", "ceph"}
)


@dataclass
class Claim:
    """One process's stay in a run folder. `ended_with` is told before its end where an error does not pass through."""

    run: RunPaths
    by: str
    ended_with: BaseException | None = None
    _looked_at: float = field(default_factory=time.monotonic)

    def check(self) -> None:
        """Looks whether the run is still this process's.

        Raises:
            RunTaken: it is another's.
            Interrupted: it was cancelled.
        """
        self._looked_at = time.monotonic()
        workers = read_workers(self.run)
        if workers.cancelled:
            raise Interrupted(signal.SIGTERM)
        if workers.last is None or workers.last.by != self.by:
            who = f"process {workers.last.pid} on {workers.last.host}" if workers.last else "somebody"
            raise RunTaken(f"{self.run.root}: {who} has taken this run over; nothing more is written here")

    def holds(self) -> bool:
        """Whether the run is still this process's, cancelled or not."""
        last = read_workers(self.run).last
        return last is not None and last.by == self.by

    def watching(self, emit: Emit) -> Emit:
        """`emit`, and a look every few seconds: what trains comes by there."""

        def say(event: str, /, **fields: object) -> None:
            if time.monotonic() - self._looked_at > LOOK_EVERY_S:
                self.check()
            emit(event, **fields)

        return say


@contextlib.contextmanager
def claim_run(run: RunPaths, emit: Emit, *, submission: str = "") -> Iterator[Claim]:
    """Makes the run this process's until the block ends. A worker that the same submission started before, or one whose
    executor is gone, is superseded: stopped where it is on this machine, shut out where it is not.

    Raises:
        RunTaken: somebody else is at work on it.
    """
    by = secrets.token_hex(8)
    with contextlib.ExitStack() as stack:
        locked = _take_lock(run, stack)
        _make_room(run, submission, locked=locked)
        append(run, event_of_ours("started", by=by, submission=submission, job=_job(os.environ)))
        if not locked:  # whoever holds it elsewhere is shut out by that line, and lets go
            _wait_for_lock(run, stack)
        if (kind := _file_system(run.root)) in _SHARED:
            emit("warning", text=_LOCKS_MAY_NOT_HOLD.format(kind=kind))
        claim = Claim(run, by)
        try:
            yield claim
        except BaseException as error:
            claim.ended_with = claim.ended_with or error
            raise
        finally:
            append(run, _ending(by, claim.ended_with))


_LOCKS_MAY_NOT_HOLD = (
    "the run lies on {kind}, where a lock may not hold between machines: started twice, the later one takes the run over "
    "and the earlier one stops"
)


def _make_room(run: RunPaths, submission: str, *, locked: bool) -> None:
    """Refuses where somebody works on it who may not be superseded; stops who may."""
    workers = read_workers(run)
    worker = workers.worker
    alive = is_alive(worker) if worker else None
    if locked and (not alive or (worker and worker.pid == os.getpid())):
        return
    if worker is None or alive is False or not _is_given_up(workers, worker, submission):
        who = f"process {worker.pid} on {worker.host}" if worker else "another process"
        raise RunTaken(f"{run.root}: {who} works on this run; fix: wait for it, or orchestrate.py cancel", passing=True)
    if process := find_process(worker):
        stop_processes([process], STATE_PATIENCE_S)


def _is_given_up(workers: Workers, worker: WorkerEvent, submission: str) -> bool:
    """Whether whoever let this worker begin has let another one begin instead, or is dead."""
    if submission and worker.submission == submission:
        return True
    asked = next(
        (each for each in workers.events if each.event == "submitted" and each.submission == worker.submission), None
    )
    return asked is not None and is_abandoned(asked)


def _take_lock(run: RunPaths, stack: contextlib.ExitStack) -> bool:
    """Holds the lock for as long as the stack lasts; false where another does. A file system that has none says yes."""
    try:
        stack.enter_context(filelock.FileLock(run.lock, timeout=0))
    except filelock.Timeout:
        return False
    except NotImplementedError:  # filelock's word for it
        return True
    except OSError as error:
        raise EnvironmentProblem(f"{run.lock}: cannot be locked: {error.strerror}") from error
    return True


def _wait_for_lock(run: RunPaths, stack: contextlib.ExitStack) -> None:
    deadline = time.monotonic() + LOCK_PATIENCE_S
    while not _take_lock(run, stack):
        if time.monotonic() > deadline:
            raise RunTaken(f"{run.root}: an earlier worker has not let go of this run", passing=True)
        time.sleep(_POLL_S)


def _job(environ: Mapping[str, str]) -> str:
    """The batch system's number of the job that this is part of, as it lists it."""
    array = environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{environ['SLURM_ARRAY_TASK_ID']}" if array else environ.get("SLURM_JOB_ID", "")


def _ending(by: str, error: BaseException | None) -> WorkerEvent:
    """How a stay ended. SIGTERM is the machine's doing, Ctrl-C is not."""
    if error is None:
        return event_of_ours("ended", by=by, exit_code=0)
    code = error.exit_code if isinstance(error, BrushsetError | Interrupted) else 1
    passing = error.passing if isinstance(error, BrushsetError) else code == 128 + signal.SIGTERM
    return event_of_ours("ended", by=by, exit_code=code, passing=passing)


def _file_system(path: Path) -> str:
    """The kind of file system that a folder lies on, as the system names it; "" where it does not say."""
    resolved, found = path.resolve(), ""
    best = -1
    with contextlib.suppress(OSError):
        for part in psutil.disk_partitions(all=True):
            if resolved.is_relative_to(part.mountpoint) and len(part.mountpoint) > best:
                found, best = part.fstype, len(part.mountpoint)
    return found
