"""Measures many images, in as many processes as pay, a bounded number of files under way.

Threads do not serve: numpy's small steps and Pillow's headers hold Python's lock. The processes are forked by a server
that has imported what measuring needs once (Windows has none, there each is started anew); both are kept from seeing
Ctrl-C, which is for this process to act upon. A small set is measured here. What dies in a process, such as
by the system's out-of-memory killer, is an error that names the files; nobody waits for an answer that will not come.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brushset.audit.measure import Measured, MeasureLimits, measure_image
from brushset.errors import EnvironmentProblem
from brushset.files import one_line
from brushset.images import run_threads
from brushset.log import silent
from brushset.trees import available_cores

if TYPE_CHECKING:  # as in brushset.images: the processes do without the spec
    from brushset.protocols import Emit

WHAT = "images looked at"
# The start of the processes takes 0.9 s: on two cores what they gain on 220 JPEGs or 70 PNGs of a megapixel.
FEW = 150
# A decoded 64-megapixel image takes some 0.5 GB, and each process may hold one.
MOST_WORKERS = 16
_CHUNK = 8
_CHUNKS_AHEAD = 3
_EVENTS = 500
_IDLE = -1
_END_S = 5
# What a worker needs, imported once by the server that forks them; __main__ is what it would import by itself.
_PRELOADED = ["__main__", "brushset.audit.pool", "imagehash", "scipy.fftpack"]

Chunk = tuple[int, Sequence[Path]]


def measure_all(
    paths: Sequence[Path], limits: MeasureLimits, emit: Emit, workers: int | None = None
) -> Generator[Measured, None, None]:
    """Every file measured, in order. `workers`: None takes as many as there are cores, or none for few files; 1 takes
    this process.

    Raises:
        EnvironmentProblem: a process died; the files that it may have been at are named.
    """
    step = max(1, len(paths) // _EVENTS)
    with contextlib.closing(_measured(paths, limits, workers)) as results:
        for done, result in enumerate(results, 1):
            yield result
            if done % step == 0 or done == len(paths):
                emit("progress", what=WHAT, done=done, total=len(paths))


def _measured(paths: Sequence[Path], limits: MeasureLimits, workers: int | None) -> Generator[Measured, None, None]:
    if workers is None and len(paths) < FEW:
        yield from run_threads(partial(measure_image, limits=limits), paths, silent)
        return
    count = min(MOST_WORKERS, available_cores()) if workers is None else workers
    if count < 2:
        yield from (measure_image(path, limits) for path in paths)
        return
    yield from _in_processes(paths, limits, count)


def _in_processes(paths: Sequence[Path], limits: MeasureLimits, workers: int) -> Generator[Measured, None, None]:
    context = _context()
    at = context.RawArray("q", [_IDLE] * workers)
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, context, _prepare_worker, (at, context.Value("i", 0)))
    chunks = ((start, paths[start : start + _CHUNK]) for start in range(0, len(paths), _CHUNK))
    under_way: deque[Future[list[Measured]]] = deque()
    try:
        with _unheard_by_children():  # all processes start here
            for chunk in itertools.islice(chunks, workers * _CHUNKS_AHEAD):
                under_way.append(pool.submit(_measure_chunk, chunk, limits))
        while under_way:
            yield from under_way.popleft().result()
            for chunk in itertools.islice(chunks, 1):
                under_way.append(pool.submit(_measure_chunk, chunk, limits))
        pool.shutdown()
    except BrokenProcessPool as error:
        raise _died([paths[index] for index in at if index != _IDLE]) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - others:
            child.kill()
            child.join(_END_S)


def _context() -> Any:
    """A server that forks, where there is one: two workers are up in 0.9 s, where starting each anew takes 2.6 s (both
    beside orchestrate.py, which they import).
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


@contextlib.contextmanager
def _unheard_by_children() -> Iterator[None]:
    """Processes that are started in here never hear Ctrl-C, which a terminal sends to all; ours comes when it ends."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Here:
    """In a worker: its place in the shared list of what each is at."""

    at: Any = None
    slot = 0


def _prepare_worker(at: Any, next_slot: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with next_slot.get_lock():
        _Here.at, _Here.slot = at, next_slot.value
        next_slot.value += 1
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """However the parent ends, even killed: a worker that waits for work would wait forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _measure_chunk(chunk: Chunk, limits: MeasureLimits) -> list[Measured]:
    start, paths = chunk
    results = []
    for index, path in enumerate(paths, start):
        _Here.at[_Here.slot] = index
        results.append(measure_image(path, limits))
    _Here.at[_Here.slot] = _IDLE
    return results


def _died(paths: Sequence[Path]) -> EnvironmentProblem:
    names = ", ".join(one_line(str(path)) for path in paths) or "no file yet"
    return EnvironmentProblem(
        f"a process that reads images died, most likely for lack of memory, at one of: {names}; "
        "fix: take the largest of them away, or lower [dataset] max_megapixels"
    )
