"""Processes and all that descend from them: who is the one that was meant, who lives, how all of them are ended, and how
many cores there are for them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

import psutil

STOP_PATIENCE_S = 15.0
_SAME_START_S = 0.01


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def same_process(pid: int, create_time: float) -> psutil.Process | None:
    """The process of that id, where it is the one that began then: a reused id is another's."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if abs(process.create_time() - create_time) < _SAME_START_S:
            return process
    return None


def find_living(roots: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that live among `roots` and all below them, once each."""
    found: dict[int, psutil.Process] = {}
    for root in roots:
        with contextlib.suppress(psutil.NoSuchProcess):
            if root.is_running() and root.status() != psutil.STATUS_ZOMBIE:
                found[root.pid] = root
            for process in root.children(recursive=True):
                found.setdefault(process.pid, process)
    return list(found.values())


def stop_processes(roots: Iterable[psutil.Process], patience_s: float = STOP_PATIENCE_S) -> list[int]:
    """TERM to every process of the trees below `roots`, then KILL to those still there; returns the ids stopped.

    A second Ctrl-C while waiting skips to KILL.
    """
    alive = find_living(roots)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    try:
        _, stubborn = psutil.wait_procs(alive, timeout=patience_s)
    except BaseException:
        _kill(alive)
        raise
    _kill(stubborn)
    psutil.wait_procs(stubborn, timeout=patience_s)
    return [process.pid for process in alive]


def _kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
