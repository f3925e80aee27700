"""What has been tried so far, and from where does the next attempt start?

    attempts/<digest>/attempt-001/attempt.json    what it started from, its plan, its states' hashes, how it ended
                                 /output/         what its trainer wrote: epochs, states, samples
                                 /*.toml          its own pair, where its batch is not the style's

Every attempt has its own folder and its own log; nothing is written twice. `attempt.json` is written by us while the
trainer runs: after a `kill -9` it still says what is true. The choice is a pure function over what was found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from brushset.bases.header import read_header
from brushset.errors import BrushsetError, UsageError
from brushset.files import read_json, write_json
from brushset.kohya.attempts.states import SavedState
from brushset.kohya.plan import Plan
from brushset.paths import RunPaths
from brushset.records import Ending, Record

_PREFIX = "attempt-"


class Origin(Record):
    """The state that an attempt goes on from."""

    attempt: int
    state: SavedState


class AttemptRecord(Record):
    """attempt.json."""

    number: int
    log_number: int
    plan: Plan
    origin: Origin | None = None
    command: tuple[str, ...] = ()
    states: tuple[SavedState, ...] = ()
    last_step: int = 0
    device: str = ""
    seconds: float = 0.0
    ending: Ending = ""
    message: str = ""

    @property
    def from_step(self) -> int:
        return self.origin.state.step if self.origin else 0

    @property
    def base_step(self) -> int:
        """What the trainer calls step 0: it counts from the beginning of the epoch in which it starts."""
        return self.from_step // self.plan.steps_per_epoch * self.plan.steps_per_epoch


@dataclass(frozen=True)
class AttemptFolder:
    """One attempt's folder below `attempts`."""

    root: Path

    @property
    def record_file(self) -> Path:
        return self.root / "attempt.json"

    @property
    def output(self) -> Path:
        return self.root / "output"

    def read(self) -> AttemptRecord | None:
        """Its record; None where there is none that can be read."""
        try:
            return AttemptRecord.model_validate(read_json(self.record_file))
        except (BrushsetError, ValidationError):
            return None

    def write(self, record: AttemptRecord) -> None:
        write_json(self.record_file, record.model_dump(mode="json"))


def attempt_folder(attempts: Path, number: int) -> AttemptFolder:
    """Where an attempt lies."""
    return AttemptFolder(attempts / f"{_PREFIX}{number:03d}")


def read_attempts(attempts: Path) -> list[AttemptRecord]:
    """All attempts whose record can be read, oldest first."""
    folders = sorted(attempts.glob(f"{_PREFIX}*")) if attempts.is_dir() else []
    return [record for folder in folders if (record := AttemptFolder(folder).read())]


def next_number(attempts: Path) -> int:
    """A number that no folder has, readable or not."""
    taken = [int(path.name.removeprefix(_PREFIX)) for path in attempts.glob(f"{_PREFIX}[0-9]*")]
    return max(taken, default=0) + 1


def log_file(run: RunPaths, log_number: int) -> Path:
    """An attempt's log: train.log is always the newest one's, older ones carry their number."""
    older = run.logs / f"train-{log_number:03d}.log"
    return older if older.is_file() else run.train_log


def rotate_log(run: RunPaths) -> int:
    """Gives the newest log its number, so that train.log is free; returns the number of the log that comes."""
    number = len(list(run.logs.glob("train-[0-9][0-9][0-9].log"))) + 1
    if run.train_log.is_file():
        run.train_log.rename(run.logs / f"train-{number:03d}.log")
        number += 1
    return number


@dataclass(frozen=True)
class Found:
    """An attempt and what of it can be used: whether its final file is whole, and the states one can go on from."""

    record: AttemptRecord
    complete: bool = False
    usable: tuple[SavedState, ...] = ()


@dataclass(frozen=True)
class Start:
    """From where the next attempt begins. With `done` nothing is left to train: that attempt's files are the result."""

    origin: Origin | None = None
    done: int | None = None


def choose_start(found: Sequence[Found], plan: Plan) -> Start:
    """The next attempt: nothing where one is complete, else from the furthest usable state of the same arithmetic, else
    from the beginning. What led to a loss that is NaN is not gone on from.
    """
    dead = max((item.record.number for item in found if item.record.ending == "diverged"), default=0)
    alive = [item for item in found if item.record.number > dead]
    for item in reversed(alive):
        if item.complete:
            return Start(done=item.record.number)
    best: Origin | None = None
    for item in alive:
        if not item.record.plan.counts_like(plan):
            continue
        for state in item.usable:
            if _fits(state, plan) and (best is None or state.step >= best.state.step):
                best = Origin(attempt=item.record.number, state=state)
    return Start(origin=best)


def lineage(records: Sequence[AttemptRecord], last: int) -> list[tuple[AttemptRecord, int | None]]:
    """The attempts that together make one training, oldest first, each with the step up to which it counts: where the
    next one went on; None for the last.
    """
    by_number = {record.number: record for record in records}
    chain: list[tuple[AttemptRecord, int | None]] = []
    number: int | None = last
    until: int | None = None
    while number is not None:
        record = by_number[number]
        chain.append((record, until))
        number, until = (record.origin.attempt, record.from_step) if record.origin else (None, None)
    return chain[::-1]


def opens(path: Path) -> bool:
    """Whether a weights file is there and whole, by its header."""
    try:
        read_header(path)
    except UsageError:
        return False
    return True


def _fits(state: SavedState, plan: Plan) -> bool:
    """sd-scripts can begin at an epoch's start, or, without accumulation, anywhere inside: with accumulation its
    arithmetic skips all epochs, trains nothing, and ends with exit code 0. A state of an epoch's last step that was saved
    before the epoch's own file and validation would leave these out.
    """
    if state.whole_epoch:
        return True
    return plan.gradient_accumulation_steps == 1 and state.step % plan.steps_per_epoch != 0
