"""What does the trainer's TensorBoard file say, while it runs and afterwards?

accelerate flushes the file with each step, so what was trained is on disk even where the trainer is killed in the middle
of the next one. Steps in it are the trainer's own: it counts from `base_step`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brushset.records import LossPoint, ValidationPoint

LOSS = "loss/current"
VALIDATION = "loss/validation/epoch_average"
RATES = ("lr/unet", "lr/group0", "lr/group1")


@dataclass(frozen=True)
class Scalar:
    """One value of one curve."""

    tag: str
    step: int
    value: float


@dataclass
class ScalarTail:
    """Reads what is new in the event files below a folder whose subfolder begins with `prefix`."""

    folder: Path
    prefix: str
    _loaders: dict[Path, Any] = field(default_factory=dict)

    def read(self) -> list[Scalar]:
        """All values since the last call; a record that is half written comes with the next."""
        found: list[Scalar] = []
        for path in event_files(self.folder, self.prefix):
            if path not in self._loaders:
                from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

                self._loaders[path] = EventFileLoader(str(path))
            found += _scalars(self._loaders[path])
        return found


def event_files(folder: Path, prefix: str) -> list[Path]:
    """The event files of one attempt."""
    return sorted(folder.glob(f"{prefix}*/**/events.out.tfevents.*"))


def read_scalars(files: Iterable[Path]) -> list[Scalar]:
    """All values of some event files, in order."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    return [scalar for path in files for scalar in _scalars(EventFileLoader(str(path)))]


def read_losses(event_files: Iterable[Path], *, base_step: int = 0) -> tuple[LossPoint, ...]:
    """The loss of every optimizer step from TensorBoard files, with the UNet's learning rate after it.

    With gradient accumulation sd-scripts writes a value per batch: those before the update carry the number of the
    step before. They are averaged into the step that they led to.
    """
    losses: dict[int, list[float]] = defaultdict(list)
    rates: dict[int, float] = {}
    for path in event_files:
        scalars = read_scalars([path])
        points = [scalar for scalar in scalars if scalar.tag == LOSS]
        for step, point in zip(_led_to([point.step for point in points]), points, strict=True):
            losses[step].append(point.value)
        tags = {scalar.tag for scalar in scalars}
        tag = next((tag for tag in RATES if tag in tags), None)
        rates |= {scalar.step: scalar.value for scalar in scalars if scalar.tag == tag}
    return tuple(
        LossPoint(step=base_step + step, loss=sum(values) / len(values), lr=rates.get(step))
        for step, values in sorted(losses.items())
    )


def validation_points(scalars: Iterable[Scalar], steps_per_epoch: int, steps: int) -> list[ValidationPoint]:
    """The validation curve among some scalars; its axis is the epoch, which sd-scripts counts right when resumed."""
    return [
        ValidationPoint(epoch=scalar.step, step=min(scalar.step * steps_per_epoch, steps), loss=scalar.value)
        for scalar in scalars
        if scalar.tag == VALIDATION
    ]


def _led_to(steps: Sequence[int]) -> list[int]:
    """The optimizer step that each batch led to: the first value with a number ends that step, later ones begin the next."""
    seen = {0}
    led_to = []
    for step in steps:
        led_to.append(step + 1 if step in seen else step)
        seen.add(step)
    return led_to


def _scalars(loader: Any) -> Iterator[Scalar]:
    """The scalars in what an event file loader has not handed out yet."""
    from tensorboard.util import tensor_util

    for event in loader.Load():
        for value in event.summary.value:
            if value.HasField("tensor") and not value.tensor.tensor_shape.dim:
                yield Scalar(value.tag, event.step, float(tensor_util.make_ndarray(value.tensor)))
