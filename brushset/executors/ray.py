"""Ray Core: GPUs and fractions of one, on this machine or on a cluster, inside Slurm too.

A run is a Ray task that starts our command and waits for it. Ray places it, and starts it anew where its machine or worker
is lost; where the command itself was killed the task fails by Death, which Ray retries as well. Measured: docs/LOG.md.
Ray gives each node's start 15 s, which a busy machine may miss now and then: so it is tried three times. No dashboard, no
usage statistics; a cluster of our own listens on the loopback alone; Ray's token authentication is left as it is.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from brushset.errors import EnvironmentProblem, UsageError
from brushset.executors.standing import Judge, attempt, hand_over, newest_log
from brushset.paths import RunPaths
from brushset.protocols import Handle, Standing, Task
from brushset.spec import RaySection
from brushset.workers import note_cancelled, read_workers

_STARTS = 3
_STORE_BYTES = 100 << 20  # nothing of ours goes through it
_LOOPBACK = "127.0.0.1"
_CANCEL_PATIENCE_S = 40.0


class Death(RuntimeError):
    """The command was killed; Ray starts it anew."""


def work(root: str, argv: Sequence[str], submission: str, max_retries: int) -> None:
    """One attempt, in a Ray worker. A cancelled worker gets a KeyboardInterrupt, which stops the whole tree."""
    run = RunPaths(Path(root))
    if read_workers(run).cancelled:
        return
    attempt(Handle(Task(run, tuple(argv), ()), submission), os.environ)
    if read_workers(run).may_go_on(max_retries):
        raise Death(run.run_id)


class RayExecutor:
    """Runs tasks on a cluster that is up, or on one of this machine alone while it is needed."""

    name = "ray"
    poll_every_s = 1.0
    outlives = False

    def __init__(self, settings: RaySection, max_retries: int, *, at_once: int) -> None:
        self._max_retries = max_retries
        self._judge = Judge()
        self._refs: dict[Handle, Any] = {}
        self._folder = "" if settings.address else tempfile.mkdtemp(prefix="bs-ray-")  # a socket's path is short
        self._ray = _start(settings, self._folder, at_once)
        gpus = settings.gpus_per_run
        if gpus is None:
            seen = self._ray.cluster_resources().get("GPU", 0.0)
            gpus = min(1.0, seen if settings.address else seen / at_once)
        self._work = self._ray.remote(work).options(
            num_gpus=gpus, num_cpus=settings.cpus_per_run, max_retries=max_retries, retry_exceptions=[Death]
        )

    def submit(self, tasks: Sequence[Task]) -> list[Handle]:
        """Queues them in the cluster."""
        handles = hand_over(tasks, self.name)
        for handle in handles:
            words = (str(handle.task.run.root), list(handle.task.argv), handle.submission, self._max_retries)
            self._refs[handle] = self._work.remote(*words)
        return handles

    def poll(self, handles: Sequence[Handle]) -> list[Standing]:
        """By the runs' own records, once Ray has no more to do with them."""
        refs = [self._refs[handle] for handle in handles]
        over, _ = self._ray.wait(refs, num_returns=len(refs), timeout=0) if refs else ([], [])
        ended = set(over)
        return [self._standing(handle, over=self._refs[handle] in ended) for handle in handles]

    def cancel(self, handle: Handle) -> None:
        """Stops its whole tree; it is not retried."""
        note_cancelled(handle.task.run)
        self._stop([handle])

    def logs(self, handle: Handle) -> Path:
        """The newest process's, on the file system that the machines share."""
        return newest_log(handle.task.run)

    def close(self) -> None:
        """Stops what runs, and the cluster where it is ours."""
        refs = list(self._refs.values())
        over, _ = self._ray.wait(refs, num_returns=len(refs), timeout=0) if refs else ([], [])
        self._stop([handle for handle, ref in self._refs.items() if ref not in over])
        self._ray.shutdown()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _stop(self, handles: Sequence[Handle]) -> None:
        """All at once; those that do not end are ended by force, with all that they started."""
        refs = [self._refs[handle] for handle in handles]
        for ref in refs:
            self._ray.cancel(ref)
        _, stubborn = self._ray.wait(refs, num_returns=len(refs), timeout=_CANCEL_PATIENCE_S) if refs else ([], [])
        for ref in stubborn:
            self._ray.cancel(ref, force=True)

    def _standing(self, handle: Handle, *, over: bool) -> Standing:
        standing = self._judge.standing(handle, over=over)
        if standing.state == "failed" and not read_workers(handle.task.run).starts:
            try:
                self._ray.get(self._refs[handle], timeout=0)
            except Exception as error:  # noqa: BLE001  Ray's errors have no common class; whatever it says is told
                return replace(standing, words=f"{standing.words}: {str(error).strip().splitlines()[-1]}")
        return standing


def _start(settings: RaySection, folder: str, at_once: int) -> Any:
    """Ray, connected.

    Raises:
        UsageError: it is not installed.
        EnvironmentProblem: no cluster can be started or reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UsageError("--executor ray: Ray is not installed; fix: uv sync --extra ray") from error
    if settings.address:
        how: dict[str, Any] = {"address": settings.address}
    else:
        how = {
            "address": "local", "include_dashboard": False, "object_store_memory": _STORE_BYTES, "_temp_dir": folder,
            "_node_ip_address": _LOOPBACK, "num_cpus": max(1, math.ceil(at_once * settings.cpus_per_run)),
        }  # fmt: skip
    failures = []
    for _ in range(_STARTS):
        handler = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(log_to_driver=False, configure_logging=False, **how)
        except Exception as error:  # noqa: BLE001  Ray raises whatever its processes died of; each is tried again, and told
            failures.append(str(error).strip().splitlines()[-1])
            ray.shutdown()
        else:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)  # Ray's own would end us without stopping anything
            return ray
    where = settings.address or "a cluster of this machine"
    raise EnvironmentProblem(f"--executor ray: {where} did not answer, {_STARTS} times: {failures[-1]}")
