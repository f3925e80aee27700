"""What do the attempts on disk hold, and is one of them a finished training?

Nothing here trusts how an attempt said that it ended: what its files are worth is seen from the files, so that it is
right after a kill at any moment, between the trainer's end and ours too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from brushset.bases.header import read_header
from brushset.kohya.attempts.history import (
    AttemptRecord,
    Found,
    attempt_folder,
    lineage,
    opens,
    read_attempts,
)
from brushset.kohya.attempts.states import SavedState, state_problem
from brushset.kohya.plan import Plan
from brushset.kohya.render import LOGGING_DIR
from brushset.kohya.scalars import event_files, read_losses, read_scalars, validation_points
from brushset.patience import Choice, choose_epoch
from brushset.protocols import Emit, TrainJob
from brushset.records import LossPoint, ValidationPoint


def log_prefix(record: AttemptRecord) -> str:
    """How an attempt's folder below logs/tensorboard begins."""
    return f"train-{record.log_number:03d}-"


@dataclass(frozen=True)
class Training:
    """One training, made of one attempt or of several that went on from one another; `last` is the newest."""

    job: TrainJob
    chain: tuple[tuple[AttemptRecord, int | None], ...]

    @property
    def last(self) -> AttemptRecord:
        return self.chain[-1][0]

    @property
    def plan(self) -> Plan:
        return self.last.plan

    def losses(self) -> tuple[LossPoint, ...]:
        """The loss of every step, by absolute step, each from the attempt whose step counts."""
        points: list[LossPoint] = []
        for record, until in self.chain:
            found = read_losses(self._events(record), base_step=record.base_step)
            end = self.plan.steps if until is None else until
            points += [point for point in found if record.from_step < point.step <= end]
        return tuple(points)

    def validation(self) -> list[ValidationPoint]:
        """The validation curve of the whole training."""
        points: list[ValidationPoint] = []
        for record, until in self.chain:
            found = validation_points(read_scalars(self._events(record)), self.plan.steps_per_epoch, self.plan.steps)
            points += [point for point in found if until is None or point.step <= until]
        return points

    def choice(self) -> Choice | None:
        """What validation chose; None where the style does not ask for it."""
        patience = self.job.spec.train.early_stop_patience
        return choose_epoch(self.validation(), patience) if patience else None

    def epoch_files(self) -> dict[int, tuple[Path, AttemptRecord]]:
        """The weights after each epoch that was saved and that counts."""
        found = {}
        for record, until in self.chain:
            for epoch in range(1, self.plan.epochs + 1):
                path = self.output(record) / f"{self.job.spec.name}-{epoch:06d}.safetensors"
                if (until is None or self.plan.step_after(epoch) <= until) and opens(path):
                    found[epoch] = (path, record)
        return found

    def last_file(self) -> Path | None:
        """The weights after the last step that is to be trained, where they are there and whole."""
        choice = self.choice()
        if choice and choice.stop_epoch and choice.stop_epoch < self.plan.epochs:
            stopped = self.epoch_files().get(choice.stop_epoch)
            return stopped[0] if stopped else None
        own_steps = str(self.plan.steps - self.last.base_step)
        for path in (self.output(self.last) / f"{self.job.spec.name}.safetensors", self.last_step_file()):
            if opens(path) and read_header(path).metadata.get("ss_steps") == own_steps:
                return path if self._curve_is_whole() else None
        return None

    def _curve_is_whole(self) -> bool:
        """Whether the last step's loss is on disk, where there is a curve: it is written a moment after the weights."""
        losses = self.losses()
        return not losses or losses[-1].step >= self.plan.steps

    def last_step_file(self) -> Path:
        """Where a trainer that would go on past the last step has saved that step, in its own count."""
        own_steps = self.plan.steps - self.last.base_step
        return self.output(self.last) / f"{self.job.spec.name}-step{own_steps:08d}.safetensors"

    def output(self, record: AttemptRecord) -> Path:
        """What an attempt's trainer wrote."""
        return attempt_folder(self.job.attempts, record.number).output

    def _events(self, record: AttemptRecord) -> list[Path]:
        return event_files(self.job.run.root / LOGGING_DIR, log_prefix(record))


def training_of(job: TrainJob, number: int) -> Training:
    """The training whose newest attempt has this number."""
    return Training(job, tuple(lineage(read_attempts(job.attempts), number)))


def survey(job: TrainJob, plan: Plan, emit: Emit) -> list[Found]:
    """Every attempt of the plan's arithmetic, with what can be used of it. Says which states cannot, and why."""
    found = []
    records = read_attempts(job.attempts)
    numbers = {record.number for record in records}
    for record in records:
        if record.origin and record.origin.attempt not in numbers:
            continue
        training = training_of(job, record.number)
        complete = record.plan.counts_like(plan) and training.last_file() is not None
        usable = []
        for state in record.states:
            folder = training.output(record) / state.folder
            if complete or not record.plan.counts_like(plan) or not folder.is_dir():
                continue
            problem = state_problem(folder, state, base_step=record.base_step, job=job) or _gap(training, state)
            if problem:
                emit("warning", text=f"the state at step {state.step} cannot be gone on from: {problem}; {folder}")
            else:
                usable.append(state)
        found.append(Found(record, complete, tuple(usable)))
    return found


def _gap(training: Training, state: SavedState) -> str:
    """What of the training up to a state would be missing in the end, or an empty string: the state is saved a moment
    before the last loss is written, and a file may have been lost since.
    """
    every = training.job.spec.train.save_every_n_epochs
    done = state.epoch if state.whole_epoch else state.epoch - 1
    files = training.epoch_files()
    if missing := [epoch for epoch in range(every, done + 1, every) if epoch not in files]:
        return f"the weights of epoch {missing[0]} are gone"
    steps = {point.step for point in training.losses()}
    if steps and (lost := set(range(1, state.step + 1)) - steps):
        return f"the loss of step {min(lost)} was never written"
    return ""
