"""Of the training: configure, train, and the base model that it stands on."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from brushset.records.base import Record


class EngineConfig(Record):
    """The rendered Kohya pair, and the arithmetic of a run's length."""

    engine: str
    images: int
    repeats: int
    arithmetic: str = Field(description="how repeats and steps came about, one line")
    batches_per_epoch: int = Field(
        description="that each process takes; one process, unless [train] processes says more"
    )
    epochs: int
    steps: int = Field(description="optimizer steps the run will take")
    buckets: dict[str, int] = Field(description='"512x512" → images in it, width first')


class Checkpoint(Record):
    """One kept LoRA file."""

    path: str
    epoch: int
    step: int
    sha256: str


class LossPoint(Record):
    """The loss at one optimizer step, as the trainer reports it."""

    step: int
    loss: float
    lr: float | None = None


class ValidationPoint(Record):
    """The loss on the held-out images after one epoch. `train_loss` is that of as many images of the training set, measured
    in the same way, where the engine does: the gap is what was learned by heart.
    """

    epoch: int
    step: int
    loss: float
    train_loss: float | None = None


class TrainSample(Record):
    """One image that the trainer made of a prompt of [evaluate] after an epoch."""

    epoch: int
    prompt: str
    path: str


Ending = Literal["", "finished", "stopped", "interrupted", "out of memory", "diverged", "failed"]


class Attempt(Record):
    """One start of the trainer. A style's batch is divided where it did not fit; `ending` is empty where we were killed."""

    number: int
    from_step: int = Field(description="0 from the beginning, else what an earlier attempt had done")
    to_step: int = Field(description="the last step that was seen")
    batch_size: int
    gradient_accumulation_steps: int
    gradient_checkpointing: bool
    seconds: float
    ending: Ending
    message: str = Field("", description="why it ended, where it did not end well")
    log: str


class Trained(Record):
    """What training left behind. `weights` is the file as the trainer wrote it."""

    engine: str
    engine_version: str = Field(description="sd-scripts' commit, or brushset's version")
    command: tuple[str, ...] = Field(description="argv; empty for the embedded engine")
    weights: str
    weights_sha256: str
    checkpoints: tuple[Checkpoint, ...]
    steps: int
    epochs: int
    losses: tuple[LossPoint, ...]
    seconds: float
    device: str
    modules: int
    tensors: int
    base_sha256: str
    base_random: bool = Field(
        description="the base model is made of random numbers: nothing here says anything of quality"
    )
    validation: tuple[ValidationPoint, ...] = ()
    samples: tuple[TrainSample, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    best_epoch: int | None = Field(
        None, description="whose weights these are, where validation chose; None is the last"
    )
    phases: dict[str, float] = Field(
        {},
        description="wall seconds of the last attempt by phase, where the engine tells; styles trained together share some",
    )
    stopped_early: str = Field("", description="why training ended before its planned length; else empty")


class BaseFile(Record):
    """A base model on disk, family checked, hashed."""

    name: str = Field(description="as the user asked for it")
    path: str = Field(description="absolute: a diffusers folder or a single .safetensors file")
    kind: Literal["folder", "single-file"]
    sha256: str = Field(description="of the file, or over a folder's safetensors files")
    random: bool
    narrow: bool = Field(description="not SD 1.5's widths; only the embedded engine trains it")
