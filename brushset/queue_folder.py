"""A queue of commands kept on disk: a file an entry, in the order of their numbers, so that it goes on after a reboot.

An entry is the words of our own command line and the folder it was given in. It is removed once its command went well; one
that failed stays, with its exit code, and is tried again by the next `queue run`. Which entry is being worked on is known
by the process that holds the queue's lock, and by nothing that a power cut could leave behind.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import filelock
from pydantic import ValidationError

from brushset.errors import BrushsetError, EnvironmentProblem, RunTaken, UsageError
from brushset.files import read_json, shown, write_json
from brushset.records.base import Record

_LOCK_PATIENCE_S = 10.0


class Waiting(Record):
    """One entry. `exit_code` is of its last try, None before there was one."""

    number: int
    words: tuple[str, ...]
    folder: str
    added_at: float
    started_at: float | None = None
    exit_code: int | None = None
    said: str = ""


@dataclass(frozen=True)
class QueueFolder:
    """The queue in one folder."""

    root: Path

    def log(self, entry: Waiting) -> Path:
        """What the last try of an entry said."""
        return self.root / "logs" / f"{entry.number:06d}.log"

    def add(self, words: Sequence[str], folder: Path) -> Waiting:
        """Puts a command at the end."""
        self.root.mkdir(parents=True, exist_ok=True)
        with self._lock(".add-lock", timeout=_LOCK_PATIENCE_S):
            numbers = [int(path.stem) for path in self._files()]
            used = [int(path.stem) for path in (self.root / "logs").glob("*.log") if path.stem.isdigit()]
            number = max([0, *numbers, *used]) + 1
            entry = Waiting(number=number, words=tuple(words), folder=str(folder), added_at=time.time())
            self.save(entry)
        return entry

    def save(self, entry: Waiting) -> None:
        """Writes an entry, atomically."""
        write_json(self._file(entry.number), entry.model_dump(mode="json"))

    def entries(self) -> list[Waiting]:
        """All entries in their order; a file that is none of ours is left out."""
        found = []
        for path in self._files():
            with contextlib.suppress(BrushsetError, ValidationError):  # removed meanwhile, or of another version
                found.append(Waiting.model_validate(read_json(path)))
        return found

    def remove(self, number: int) -> None:
        """Takes an entry out.

        Raises:
            UsageError: there is none of that number.
        """
        try:
            self._file(number).unlink()
        except FileNotFoundError as error:
            there = ", ".join(str(entry.number) for entry in self.entries()) or "none"
            raise UsageError(f"{number}: no such entry in the queue; there are: {there}") from error

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Holds the queue, so that nobody else works through it.

        Raises:
            RunTaken: another process does.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with self._lock(".run-lock", timeout=0):
            holder = self.root / ".run-holder"
            holder.write_text(str(os.getpid()), encoding="utf-8")
            yield

    def worker(self) -> int | None:
        """The process that works through the queue; None where nobody does."""
        if not (self.root / ".run-lock").is_file():
            return None
        with contextlib.suppress(OSError, filelock.Timeout), filelock.FileLock(self.root / ".run-lock", timeout=0):
            return None
        with contextlib.suppress(OSError, ValueError):
            return int((self.root / ".run-holder").read_text(encoding="utf-8"))
        return None

    @contextlib.contextmanager
    def _lock(self, name: str, *, timeout: float) -> Iterator[None]:
        lock = filelock.FileLock(self.root / name, timeout=timeout)
        try:
            lock.acquire()
        except filelock.Timeout as error:
            who = self.worker() or "unknown"
            raise RunTaken(
                f"{shown(self.root)}: process {who} works on the queue; fix: wait for it", passing=True
            ) from error
        except OSError as error:
            raise EnvironmentProblem(f"{shown(self.root)}: cannot be locked: {error.strerror}") from error
        try:
            yield
        finally:
            lock.release()

    def _file(self, number: int) -> Path:
        return self.root / f"{number:06d}.json"

    def _files(self) -> list[Path]:
        return sorted(path for path in self.root.glob("*.json") if path.stem.isdigit())
