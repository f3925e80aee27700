"""The training itself: batches → gradients → updates, of one style or of several side by side.

One update follows `gradient_accumulation_steps` batches, or fewer at an epoch's end. All that a batch draws (noise,
timesteps, mirrors, captions) depends on its style's seed and the batch's number alone, so a style's weights do not depend
on which others are trained beside it, nor on where its training was interrupted. Losses are read from the device every
READ_EVERY passes and wherever somebody waits for the weights; a loss that is NaN ends its style and no other. Which styles
go together depends on where each one is and on nothing else: all that are saved at one moment go on in the same passes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from brushset.errors import TrainerFailed
from brushset.native.dataset import Batch, Length, epoch_batches
from brushset.native.norms import limit_norms
from brushset.native.schedule import Schedule, evenly_apart
from brushset.native.session import Session

if TYPE_CHECKING:
    from brushset.buckets import Size
    from brushset.native.settings import TrainingKeys
    from brushset.native.step import Pack

READ_EVERY = {"cuda": 50, "cpu": 1}
"""Passes between two readings of the losses, by device: on a CPU there is nothing to wait for."""


@dataclass(frozen=True)
class Update:
    """One optimizer step, done. `loss` is the mean over its batches, `average` over the last epoch's worth of them;
    `rates` are the learning rates that it was made with, by parameter group; `current` is whether the weights are still
    those of this step: losses are read several steps at a time.
    """

    step: int
    epoch: int
    loss: float
    average: float
    rates: dict[str, float]
    ends_epoch: bool
    current: bool = True


@dataclass
class _Course:
    """Where one style is. `gathered` are the places of the losses of batches that make the next update, `waiting` the
    updates whose losses are not read yet, with what was known of them and the places of the rest.
    """

    session: Session
    pause: Callable[[int, int, bool], bool]
    recent: deque[float]
    number: int = 0
    epoch: int = 0
    position: int = 0
    batches: list[Batch] = field(default_factory=list)
    gathered: list[int] = field(default_factory=list)
    waiting: list[tuple[Update, list[float], list[int]]] = field(default_factory=list)
    awaited: bool = False
    over: bool = False

    @property
    def batch(self) -> Batch:
        """The next one."""
        return self.batches[self.position]

    def open_epoch(self) -> None:
        """Goes to the epoch and batch after the session's last step and what was gathered since."""
        session, length = self.session, self.session.length
        self.epoch = session.step // length.steps_per_epoch + 1
        self.number = batches_done(session)
        self.position = self.number - (self.epoch - 1) * length.batches_per_epoch
        seed = session.settings.training.seed
        self.batches = epoch_batches(session.images, session.settings.dataset, seed=seed, epoch=self.epoch)

    def advance(self, slot: int) -> bool:
        """Notes where the batch's loss lies; returns whether an update is due."""
        self.gathered.append(slot)
        self.position += 1
        self.number += 1
        every = self.session.settings.training.gradient_accumulation_steps
        return self.position % every == 0 or self.position == len(self.batches)

    def note_update(self) -> None:
        """Counts an update, and whether somebody waits for the weights of this step."""
        session, ends_epoch = self.session, self.position == len(self.batches)
        session.step += 1
        rates = session.rates[session.step - 1]
        update = Update(session.step, self.epoch, math.nan, math.nan, rates, ends_epoch, current=False)
        self.waiting.append((update, session.pending, self.gathered))
        session.pending, self.gathered = [], []
        self.over = session.step == session.length.steps
        if ends_epoch and not self.over:
            self.open_epoch()
        self.awaited = self.over or self.pause(update.step, update.epoch, ends_epoch)

    def read(self, kept: Sequence[Sequence[float]]) -> Iterator[Update | TrainerFailed]:
        """What became of the updates that waited, now that losses are read; those of an unfinished one are kept."""
        session, waiting = self.session, self.waiting
        session.pending = [*session.pending, *(kept[slot][session.row] for slot in self.gathered)]
        self.waiting, self.gathered, self.awaited = [], [], False
        return self._tell([(update, [*known, *(kept[slot][session.row] for slot in slots)])
                           for update, known, slots in waiting])  # fmt: skip

    def _tell(self, made: Sequence[tuple[Update, list[float]]]) -> Iterator[Update | TrainerFailed]:
        for update, losses in made:
            broken = [loss for loss in losses if not math.isfinite(loss)]
            if broken:
                self.over, self.session.pending = True, []
                yield _failure(self.session, update.step, broken[0])
                return
            self.recent.extend(losses)
            self.session.recent = list(self.recent)
            yield replace(
                update,
                loss=sum(losses) / len(losses),
                average=sum(self.recent) / len(self.recent),
                current=update.step == self.session.step,
            )


def run_updates(session: Session, length: Length) -> Iterator[Update]:
    """Trains one style, one update at a time, to the end.

    Raises:
        TrainerFailed: the loss is NaN or infinite; nothing after it would be worth keeping.
    """
    session.length = length
    for _, told in run_together([session]):
        if isinstance(told, TrainerFailed):
            raise told
        yield told


def run_together(
    sessions: Sequence[Session],
    *,
    schedule: Schedule | None = None,
    read_every: int | None = None,
    at_rest: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Session, Update | TrainerFailed]]:
    """Trains all styles of one pack to their ends; tells each style's updates in order, and the failure that ended it.

    Styles whose next batches have one shape go together (brushset.native.schedule); the others wait or go alone. When a
    style ends, the others go on. `at_rest` is called when all that was done has been told: what is saved then belongs
    together. Styles whose weights somebody waits for are told last, so that this holds in their last update as well.
    """
    pack, schedule = sessions[0].pack, schedule or open_schedule(sessions)
    courses = [_Course(each, each.pause, deque(each.recent, each.length.batches_per_epoch)) for each in sessions]
    for course in courses:
        course.over = course.session.step >= course.session.length.steps
        if not course.over:
            course.open_epoch()
    losses = _Losses(pack, read_every or READ_EVERY[pack.device.type])
    while running := [course for course in courses if not (course.over or course.session.stopped)]:
        chosen = schedule.choose({course.session.row: course.number for course in running})
        together = [course for course in running if course.session.row in chosen]
        slot = losses.put(pack, together)
        due = [course for course in together if course.advance(slot)]
        _update(pack, due)
        for course in due:
            course.note_update()
        if losses.full or any(course.awaited for course in due):
            awaited = {id(course) for course in courses if course.awaited}
            kept = losses.read()
            told = [(course, course.read(kept)) for course in courses]
            for course, updates in sorted(told, key=lambda each: id(each[0]) in awaited):
                for update in updates:
                    yield course.session, update
            at_rest()


def open_schedule(sessions: Sequence[Session]) -> Schedule:
    """Who goes with whom, of all batches of these styles. Of one alone nobody asks for shapes, so none are drawn."""
    if len(sessions) == 1:
        return Schedule({sessions[0].row: [None] * _count_batches(sessions[0].length, sessions[0].settings.training)})
    return Schedule({each.row: [_shape(batch) for batch in _all_batches(each)] for each in sessions})


def batches_done(session: Session) -> int:
    """How many batches of the run a session has behind it, those of an unfinished update included."""
    length, every = session.length, session.settings.training.gradient_accumulation_steps
    epoch, done = divmod(session.step, length.steps_per_epoch)
    return epoch * length.batches_per_epoch + done * every + len(session.pending)


def _all_batches(session: Session) -> Iterator[Batch]:
    """Of the whole run; where it is as many steps long as were asked for, its last epoch is cut short."""
    length, training = session.length, session.settings.training
    for epoch in range(1, length.epochs + 1):
        left = length.steps - (epoch - 1) * length.steps_per_epoch
        batches = epoch_batches(session.images, session.settings.dataset, seed=training.seed, epoch=epoch)
        yield from batches[: left * training.gradient_accumulation_steps]


def _count_batches(length: Length, training: TrainingKeys) -> int:
    """Of the whole run; its last epoch may be cut short."""
    epochs = length.epochs - 1
    left = length.steps - epochs * length.steps_per_epoch
    last = min(length.batches_per_epoch, left * training.gradient_accumulation_steps)
    return epochs * length.batches_per_epoch + last


def _shape(batch: Batch) -> tuple[Size, int]:
    return batch.bucket, len(batch.images)


def _update(pack: Pack, due: Sequence[_Course]) -> None:
    """Moves the weights of all styles whose update is due: at once where their rows allow it."""
    while due:
        together = len(evenly_apart([course.session.row for course in due]))
        sessions, due = [course.session for course in due[:together]], due[together:]
        for session in sessions:
            session.set_rates()
        pack.update([session.row for session in sessions], [session.optimizer for session in sessions])
        limited = [session for session in sessions if session.settings.training.scale_weight_norms]
        for session in limited:
            limit_norms(session.adapter, session.settings.training.scale_weight_norms or math.inf)
        if limited:
            pack.flat.refresh()


class _Losses:
    """Losses of the last passes on the device, [passes, styles], until they are read."""

    def __init__(self, pack: Pack, every: int) -> None:
        self._every = every
        self._room = torch.zeros(every, len(pack.adapters), dtype=pack.scales.dtype, device=pack.device)
        self._used = 0

    @property
    def full(self) -> bool:
        return self._used >= self._every

    def put(self, pack: Pack, together: Sequence[_Course]) -> int:
        """Makes one pass, and returns the place of its losses."""
        draws = {course.session.row: course.session.draw(course.batch, course.number) for course in together}
        losses = pack.add_gradients(draws)
        pack.routing.take(self._room[self._used]).copy_(losses)
        self._used += 1
        return self._used - 1

    def read(self) -> list[list[float]]:
        """All that is held, and forgets it; this waits for the device."""
        read: list[list[float]] = self._room[: self._used].tolist()
        self._used = 0
        return read


def _failure(session: Session, step: int, loss: float) -> TrainerFailed:
    training = session.settings.training
    return TrainerFailed(
        f"step {step}: the loss is {loss} (unet_lr {training.unet_rate}, mixed_precision "
        f'"{training.mixed_precision}"); lower the learning rates, or set mixed_precision = "bf16"'
    )
