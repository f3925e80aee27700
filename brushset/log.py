"""One log for people, one for machines. Every event goes to the run's events.jsonl and to whoever listens.

Only the front door prints: it listens. `trace` keeps the stack of an unforeseen error out of the terminal.
"""

from __future__ import annotations

import json
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

Listener = Callable[[str, Mapping[str, object]], None]


class EventLog:
    """Appends events to a JSON Lines file once there is one, and hands each to the listeners. Thread-safe."""

    def __init__(self, *listeners: Listener) -> None:
        self._listeners = listeners
        self._path: Path | None = None
        self._common: dict[str, object] = {}
        self._lock = threading.Lock()

    def write_to(self, path: Path, **common: object) -> None:
        """From here on events are appended to `path`, with the fields `common` on each."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._common = path, common

    def stop_writing(self) -> None:
        """From here on events go to the listeners alone."""
        self._path, self._common = None, {}

    def __call__(self, event: str, /, **fields: object) -> None:
        """Records one event. See brushset.protocols.Emit for the names."""
        full = {**self._common, **fields}
        with self._lock:
            if self._path is not None:
                line = json.dumps(
                    {"time": round(time.time(), 3), "event": event, **full}, default=str, ensure_ascii=False
                )
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
            for listener in self._listeners:
                listener(event, full)

    def trace(self, error: BaseException) -> Path | None:
        """Writes the stack of an error beside the events; returns where, or None before there is a run."""
        if self._path is None:
            return None
        path = self._path.with_name("error.log")
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(traceback.format_exception(type(error), error, error.__traceback__)) + "\n")
        return path


def silent(event: str, /, **fields: object) -> None:
    """An Emit that nobody hears."""
