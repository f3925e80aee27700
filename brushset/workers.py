"""Who works on a run folder, who did, and how each ended.

workers.jsonl in the run folder is only ever appended to, a line an event: `submitted` to an executor, `started` by a
process (host, id and start time, so that a reused id is not mistaken for it), `ended` with its exit code, `cancelled`.
Whoever started and neither ended nor lives has died: that is what executors retry. Costs on a local disk: see docs/LOG.md.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import time
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import psutil
from pydantic import ValidationError

from brushset.errors import EnvironmentProblem
from brushset.paths import RunPaths
from brushset.records.base import Record
from brushset.trees import same_process

BRIEF_S = 60.0  # nobody's time limit is shorter: whoever is stopped sooner than this has died
MOST_STARTS = 100  # time limits that are no progress end somewhere
_DIE_WITH_US = frozenset({"local", "ray"})  # executors that nothing is left of once the command that made them is gone


class WorkerEvent(Record):
    """One line of workers.jsonl. `by` names the process's stay, `submission` what an executor was asked for; `job` is the
    executor's own number.
    """

    event: Literal["submitted", "started", "ended", "cancelled"]
    time: float
    host: str
    pid: int
    created: float
    by: str = ""
    submission: str = ""
    executor: str = ""
    job: str = ""
    exit_code: int | None = None
    passing: bool = False


@dataclass(frozen=True)
class Workers:
    """What workers.jsonl says."""

    events: tuple[WorkerEvent, ...]

    @cached_property
    def submission(self) -> WorkerEvent | None:
        """The last submission to an executor."""
        return next((each for each in reversed(self.events) if each.event == "submitted"), None)

    @cached_property
    def starts(self) -> tuple[WorkerEvent, ...]:
        """Every start since that submission."""
        name = self.submission.submission if self.submission else None
        first = next((at for at, each in enumerate(self.events) if each.submission == name), 0)
        return tuple(each for each in self.events[first:] if each.event == "started")

    @cached_property
    def last(self) -> WorkerEvent | None:
        """The last start of all: the run is that process's."""
        return next((each for each in reversed(self.events) if each.event == "started"), None)

    def ending(self, start: WorkerEvent) -> WorkerEvent | None:
        """How a stay ended; None while it lasts, and for ever where it died."""
        return next((each for each in self.events if each.event == "ended" and each.by == start.by), None)

    @property
    def worker(self) -> WorkerEvent | None:
        """Who works on it, or died over it."""
        return self.last if self.last and self.ending(self.last) is None else None

    @property
    def exit_code(self) -> int | None:
        """Of the last one that ended since the submission; None where it died without a word, or there is none."""
        end = self.ending(self.starts[-1]) if self.starts else None
        return end.exit_code if end else None

    @property
    def attempts(self) -> int:
        """Starts of all, the last one and those before it that did not end well: its earlier stages may have been asked
        for alone.
        """
        starts = [each for each in self.events if each.event == "started"]
        ends = [self.ending(start) for start in starts[:-1]]
        return len(starts[-1:]) + sum(end is None or end.exit_code != 0 for end in ends)

    @property
    def cancelled(self) -> bool:
        """Whether no executor is to work on it until it is submitted anew, or somebody starts it by hand."""
        wanted = (
            each for each in reversed(self.events) if each.event in {"cancelled", "submitted"} or _is_by_hand(each)
        )
        last = next(wanted, None)
        return last is not None and last.event == "cancelled"

    @property
    def deaths(self) -> int:
        """Starts since the submission that the machine ended: killed, or stopped at once; a time limit is none."""
        gone = [start for start in self.starts if start is not self.worker or not is_alive(start)]
        ends = [(start, self.ending(start)) for start in gone]
        return sum(end is None or (end.passing and not _is_time_limit(start, end)) for start, end in ends)

    def may_go_on(self, max_retries: int) -> bool:
        """Whether one that no longer works on it shall be followed by another: never after a verdict on what was asked."""
        if self.cancelled or not 0 < len(self.starts) < MOST_STARTS:
            return False
        end = self.ending(self.starts[-1])
        return (end is None or end.passing) and self.deaths <= max_retries


def read_workers(run: RunPaths) -> Workers:
    """What workers.jsonl says; a line that a dying machine left half-written is passed over."""
    events = []
    with contextlib.suppress(FileNotFoundError):
        for line in run.workers.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValidationError):
                events.append(WorkerEvent.model_validate_json(line))
    return Workers(tuple(events))


def note_submitted(run: RunPaths, *, submission: str, executor: str, job: str = "") -> None:
    """Writes down that an executor was asked to work on it; what was cancelled before is so no more. Said again once the
    engine has told its own name for the `job`.
    """
    append(run, event_of_ours("submitted", submission=submission, executor=executor, job=job))


def note_cancelled(run: RunPaths) -> None:
    """Nobody starts on it any more, and who works on it stops within seconds, on whichever machine."""
    append(run, event_of_ours("cancelled"))


def is_alive(event: WorkerEvent) -> bool | None:
    """Whether the process that wrote this lives; None where it is another machine's."""
    return None if event.host != platform.node() else find_process(event) is not None


def is_abandoned(asked: WorkerEvent) -> bool:
    """Whether whoever `submitted` this is gone, and with it all that would still have come of it."""
    return asked.executor in _DIE_WITH_US and is_alive(asked) is False


def event_of_ours(event: Literal["submitted", "started", "ended", "cancelled"], **fields: object) -> WorkerEvent:
    """An event of this process."""
    me = psutil.Process()
    return WorkerEvent.model_validate(
        {"event": event, "time": time.time(), "host": platform.node(), "pid": me.pid, "created": me.create_time(), **fields}
    )  # fmt: skip


def _is_by_hand(event: WorkerEvent) -> bool:
    return event.event == "started" and not event.submission


def _is_time_limit(start: WorkerEvent, end: WorkerEvent) -> bool:
    return end.exit_code == 128 + signal.SIGTERM and end.time - start.time >= BRIEF_S


def append(run: RunPaths, event: WorkerEvent) -> None:
    """One line in one write, on the disk before anything follows from it."""
    line = event.model_dump_json(exclude_defaults=True).encode() + b"\n"
    try:
        with run.workers.open("a+b", buffering=0) as file:
            if file.seek(0, os.SEEK_END) and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                line = b"\n" + line  # a machine died over the line before
            file.write(line)
            os.fsync(file.fileno())
    except OSError as error:
        raise EnvironmentProblem(f"{run.workers}: cannot be written: {error.strerror}") from error


def find_process(event: WorkerEvent) -> psutil.Process | None:
    """The process that wrote this, where it is of this machine and alive."""
    process = same_process(event.pid, event.created) if event.host == platform.node() else None
    with contextlib.suppress(psutil.NoSuchProcess):
        if process and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None
