"""Runs commands in a few threads, one a slot. Whoever is stopped leaves no process behind."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from brushset.process import STATE_PATIENCE_S, process_file, run_command, stop_orphan

Environment = Mapping[str, str]
_POLL_S = 0.1


class Slots:
    """Does jobs, at most one at a time a slot; each gets its slot's environment, and runs its commands by `command`."""

    def __init__(self, environments: Sequence[Environment]) -> None:
        self._waiting: queue.SimpleQueue[Callable[[Environment], None] | None] = queue.SimpleQueue()
        self._logs: set[Path] = set()
        self._unfinished = 0
        self._lock = threading.Lock()
        self.stopping = threading.Event()
        self._broken: BaseException | None = None
        self._threads = [threading.Thread(target=self._serve, args=(each,), daemon=True) for each in environments]
        for thread in self._threads:
            thread.start()

    def put(self, job: Callable[[Environment], None]) -> None:
        """Does a job as soon as a slot is free."""
        with self._lock:
            self._unfinished += 1
        self._waiting.put(job)

    def command(self, argv: Sequence[str], *, log_path: Path, **how: Any) -> None:
        """`run_command`, of a job; `stop` and `close` end it."""
        self._logs.add(log_path)
        try:
            run_command(argv, log_path=log_path, **how)
        finally:
            self._logs.discard(log_path)

    def wait(self) -> None:
        """Returns once all is done; raises what a job raised."""
        while self._unfinished and self._broken is None:
            threading.Event().wait(_POLL_S)
        self.raise_broken()

    def raise_broken(self) -> None:
        """Raises what a job raised: a bug, since jobs keep their failures to themselves."""
        if self._broken is not None:
            raise self._broken

    def stop(self, logs: Sequence[Path]) -> None:
        """Ends commands by their logs, all at once: each waits for those that are slow to end."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda log: stop_orphan(process_file(log), STATE_PATIENCE_S), logs))

    def close(self) -> None:
        """Ends all that runs and forgets what waits. A command may be starting just now: so until no thread is left."""
        self.stopping.set()
        for _ in self._threads:
            self._waiting.put(None)
        while alive := [thread for thread in self._threads if thread.is_alive()]:
            self.stop(list(self._logs))
            alive[0].join(_POLL_S)

    def _serve(self, environment: Environment) -> None:
        """One slot: a job after the other."""
        while (job := self._waiting.get()) is not None:
            try:
                if not self.stopping.is_set():
                    job(environment)
            except BaseException as error:  # noqa: BLE001, PERF203  of a thread; `wait` raises it
                self._broken = error
            finally:
                with self._lock:
                    self._unfinished -= 1
