"""Follows a running trainer: its lines and its curves become events, and it is stopped where going on is of no use.

Steps in events are absolute. A step is told once its loss is known from the TensorBoard file, which comes a moment after
the line in the log; where there is no such file, by the log alone.
"""

from __future__ import annotations

import collections
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from brushset.errors import TrainerFailed, VerificationFailed
from brushset.kohya.attempts.keeper import Keeper
from brushset.kohya.parse_log import LogReader, Progress, describe_phase, finished_state, read_bar
from brushset.kohya.scalars import LOSS, RATES, Scalar, ScalarTail, validation_points
from brushset.protocols import Emit
from brushset.records import ValidationPoint

_RATE_WINDOW = 20
_LOOK_EVERY_S = 0.5
_BAR_EVERY_S = 1.0  # tqdm repeats a finished bar when the next one begins
_NO_PHASE = "starting"


class EnoughTrained(Exception):
    """Nothing is left to train: the child is stopped, and that is a success."""


class LossDiverged(VerificationFailed):
    """The loss is no number any more, and stays so: nothing that comes from here is worth going on from."""


@dataclass
class Stall:
    """Says so when nothing has moved for `minutes`, each time they are over; `ends` makes it a failure."""

    minutes: float
    ends: bool
    log_path: Path
    clock: Callable[[], float] = time.monotonic
    _moved_at: float = field(init=False)
    _told_at: float = field(init=False)

    def __post_init__(self) -> None:
        self.moved()

    def moved(self) -> None:
        """Something came that had not been there before."""
        self._moved_at = self._told_at = self.clock()

    def check(self) -> str:
        """What to say now, or an empty string.

        Raises:
            TrainerFailed: stalled, and that shall end it.
        """
        now = self.clock()
        if now - self._told_at < self.minutes * 60:
            return ""
        self._told_at = now
        text = f"the trainer has made no progress for {(now - self._moved_at) / 60:.3g} min"
        if self.ends:
            raise TrainerFailed(f"{text} and was stopped; fix: a larger [train] stall_minutes; log: {self.log_path}")
        return f"{text}; [train] stall_ends = true would stop it; log: {self.log_path}"


@dataclass
class Watch:
    """What `run_command` is given to follow one attempt. `enough` gets the validations and the last step whose loss is
    on disk, None without a curve, and says why nothing is left to train, or nothing.
    """

    keeper: Keeper
    tail: ScalarTail
    stall: Stall
    emit: Emit
    enough: Callable[[list[ValidationPoint], int | None], str]
    validation: list[ValidationPoint]
    log: LogReader = field(default_factory=LogReader)
    steps_per_second: float | None = None
    _times: collections.deque[tuple[int, float]] = field(default_factory=lambda: collections.deque(maxlen=_RATE_WINDOW))
    _waiting: Progress | None = None
    _curves: dict[str, Scalar] = field(default_factory=dict)
    _phase: str = _NO_PHASE
    _last_line: str = ""
    _looked_at: float = 0.0
    _bars_at: dict[str, float] = field(default_factory=dict)

    @property
    def step(self) -> int:
        """The absolute step of the last line that named one."""
        return self.keeper.record.from_step + self.log.last_step

    def read(self, line: str) -> None:
        """One line of the trainer's output."""
        if line != self._last_line:
            self.stall.moved()
            self._last_line = line
        if (phase := describe_phase(line)) and phase != self._phase:
            self._phase = phase
            self.emit("note", text=f"sd-scripts: {phase}")
        if name := finished_state(line):
            self.keeper.state_finished(PurePath(name).name)
        self._refuse_other_length(line)
        self._tell_bar(line)
        before = self.log.last_step
        progress = self.log.read(line)
        if self.log.last_step > before:
            self._times.append((self.log.last_step, time.monotonic()))
            self.keeper.learn(last_step=self.step, device=self.log.facts.get("device", ""))
        if progress is not None:
            self._refuse_nan(progress)
            self._tell_step()
            self._waiting = progress

    def tick(self) -> None:
        """Looks at what does not come as a line. Called some ten times a second.

        Raises:
            EnoughTrained: nothing is left to train.
            TrainerFailed: no progress for too long, where the style says that this ends it.
        """
        if (now := time.monotonic()) - self._looked_at < _LOOK_EVERY_S:
            return
        self._looked_at = now
        self._read_curves()
        if self._waiting and self._loss_of(self._waiting) is not None:
            self._tell_step()
        if text := self.stall.check():
            self.emit("warning", text=text)
        if reason := self.enough(self.validation, self._logged_step()):
            raise EnoughTrained(reason)

    def close(self) -> None:
        """Tells what is still waiting to be told; the trainer has ended."""
        self._read_curves()
        self._tell_step()

    def _read_curves(self) -> None:
        found = self.tail.read()
        if found:
            self.stall.moved()
        self._curves |= {scalar.tag: scalar for scalar in found}
        plan = self.keeper.record.plan
        for point in validation_points(found, plan.steps_per_epoch, plan.steps):
            self.validation.append(point)
            self.emit("validation", epoch=point.epoch, loss=point.loss)

    def _logged_step(self) -> int | None:
        """Curves count from the beginning of the epoch in which the attempt started, the bar from the start itself."""
        scalar = self._curves.get(LOSS)
        return self.keeper.record.base_step + scalar.step if scalar else None

    def _loss_of(self, progress: Progress) -> Scalar | None:
        """The loss of a step, where it has come."""
        logged = self._logged_step()
        has_come = logged is not None and logged >= self.keeper.record.from_step + progress.step
        return self._curves[LOSS] if has_come else None

    def _tell_step(self) -> None:
        progress, self._waiting = self._waiting, None
        if progress is None:
            return
        record = self.keeper.record
        step, rate = record.from_step + progress.step, self._rate()
        if step > record.plan.steps:  # a resumed sd-scripts goes on to the end of the epoch until it is stopped
            return
        scalar = self._loss_of(progress)
        lr = next((self._curves[tag].value for tag in RATES if tag in self._curves), None)
        self.emit(
            "train_step",
            step=step,
            total=record.plan.steps,
            epoch=(step - 1) // record.plan.steps_per_epoch + 1,
            loss=scalar.value if scalar else progress.loss,
            smoothed=progress.loss,
            lr=lr,
            it_per_s=rate or progress.it_per_s,
            eta_s=(record.plan.steps - step) / rate if rate else progress.eta_s,
        )

    def _rate(self) -> float | None:
        """Steps a second of late: the bar's own rate is the mean since the start, warm-up and pauses included."""
        if len(self._times) < 2:
            return self.steps_per_second
        (first, began), (last, ended) = self._times[0], self._times[-1]
        if ended > began:
            self.steps_per_second = (last - first) / (ended - began)
        return self.steps_per_second

    def _refuse_nan(self, progress: Progress) -> None:
        if progress.loss is not None and not math.isfinite(progress.loss):
            raise LossDiverged(
                f"the loss became NaN by step {self.step} of {self.keeper.record.plan.steps}, and the trainer was stopped; "
                'fix: [train] mixed_precision = "bf16" instead of "fp16", or lower unet_lr and text_encoder_lr'
            )

    def _refuse_other_length(self, line: str) -> None:
        """The trainer says how long it will train once it has seen its data: another length than planned ends it there."""
        if "total optimization steps" not in line or "steps" in self.log.facts:
            return
        self.log.read(line)
        plan, facts = self.keeper.record.plan, self.log.facts
        planned, said = (plan.batches_per_epoch, plan.steps), (facts.get("batches"), facts.get("steps"))
        if said != tuple(map(str, planned)):
            raise VerificationFailed(
                f"sd-scripts would train {said[1]} steps of {said[0]} batches an epoch, and {planned[1]} of {planned[0]} "
                "were planned; fix: --force preprocess, and see config/dataset.toml"
            )

    def _tell_bar(self, line: str) -> None:
        bar = read_bar(line, self._phase)
        if bar is None or bar.what == _NO_PHASE:
            return
        told_at, now = self._bars_at.get(bar.what), time.monotonic()
        if told_at is None or now - told_at > _BAR_EVERY_S:
            self._bars_at[bar.what] = now
            self.emit("progress", what=bar.what, done=bar.done, total=bar.total)
