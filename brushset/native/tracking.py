"""What is written down while training: scalars for TensorBoard, and lines in train.log.

Scalars have sd-scripts' names and places (logging_dir/<time>/network_train), so one TensorBoard shows runs of both
engines: loss/current, loss/average, loss/epoch_average (by epoch), lr/unet, lr/textencoder, and lr/d*lr/… for Prodigy,
loss/validation/… (by epoch).
A rate is the one that the step was made with; sd-scripts writes the next step's.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from brushset.native.settings import NativeSettings
from brushset.records import ValidationPoint

if TYPE_CHECKING:
    from brushset.native.loop import Update


class Tracker:
    """Writes to TensorBoard where training.toml has a logging_dir, and appends to `log`. Closes on exit."""

    def __init__(self, settings: NativeSettings, log: Path) -> None:
        training = settings.training
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log.open("a", encoding="utf-8")
        self._writer: Any = None
        if training.logging_dir is not None:
            from torch.utils.tensorboard import SummaryWriter

            stamp = training.log_prefix + time.strftime("%Y%m%d%H%M%S")
            self._writer = SummaryWriter(str(settings.root / training.logging_dir / stamp / training.log_tracker_name))

    def __enter__(self) -> Tracker:  # noqa: PYI034 - Self is not in Python 3.10
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None:
            self.line(f"stopped: {type(error).__name__}: {error}")
        if self._writer is not None:
            self._writer.close()
        self._log.close()

    def line(self, text: str) -> None:
        """Appends one line with the time to train.log."""
        self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
        self._log.flush()

    def update(self, update: Update, optimizer_groups: Mapping[str, Mapping[str, Any]]) -> None:
        """Writes one update's scalars. `optimizer_groups`: parameter groups by name, which hold Prodigy's `d`."""
        if self._writer is None:
            return
        scalars = {"loss/current": update.loss, "loss/average": update.average}
        for name, rate in update.rates.items():
            scalars[f"lr/{name}"] = rate
            if "d" in optimizer_groups[name]:
                scalars[f"lr/d*lr/{name}"] = optimizer_groups[name]["d"] * rate
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, update.step)
        if update.ends_epoch:
            self._writer.add_scalar("loss/epoch_average", update.average, update.epoch)

    def validation(self, point: ValidationPoint, average: float) -> None:
        """Writes one validation's scalars by epoch: sd-scripts' two (its divergence is from the running average of the
        training's own losses), and the loss on trained images that is measured as the held-out one is.
        """
        self.line(f"epoch {point.epoch} validation loss {point.loss:.4f}, of trained images {point.train_loss:.4f}")
        if self._writer is None:
            return
        scalars = {"average": point.loss, "divergence": point.loss - average, "trained_images": point.train_loss}
        for name, value in scalars.items():
            self._writer.add_scalar(f"loss/validation/epoch_{name}", value, point.epoch)
