"""The seams: what an engine, a captioner, a metric and an exporter must offer. One table a folder lists them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from brushset.paths import RunPaths
from brushset.records import BaseFile, Package, Trained
from brushset.spec import StyleSpec

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image


class Emit(Protocol):
    """Receives progress. Known events and their fields:

    `stage_start` stage · `stage_skip` stage, reason · `stage_end` stage, seconds · `progress` what, done, total ·
    `train_step` step, total, loss, lr, it_per_s, eta_s · `note` text · `warning` text.
    """

    def __call__(self, event: str, /, **fields: object) -> None: ...


@dataclass(frozen=True)
class TrainJob:
    """All that an engine needs. The pair of Kohya TOMLs says what to train; their paths are relative to `run.root`,
    which is the trainer's working directory. Weights are written below `output_dir`, a folder of this attempt.
    """

    spec: StyleSpec
    run: RunPaths
    base: BaseFile
    tokenizer_dir: Path
    output_dir: Path
    steps: int
    batches_per_epoch: int


class Engine(Protocol):
    """A trainer. Both engines read the same TOML pair and write the same Kohya-format files: `<style>.safetensors`
    and `<style>-<epoch:06d>.safetensors` for earlier epochs.
    """

    name: str

    def command(self, job: TrainJob) -> list[str]:
        """The argv of the child process; empty for an embedded engine."""
        ...

    def train(self, job: TrainJob, emit: Emit) -> Trained:
        """Trains, and returns what was left in `job.output_dir`, with paths relative to it.

        Raises:
            TrainerFailed: the trainer died or trained nothing.
            UsageError: a key of the TOML pair that this engine does not honour, named.
        """
        ...


class Captioner(Protocol):
    """Writes the captions that no sidecar supplies: content only, without the trigger. `settings` names what, besides
    the images, its captions depend on.
    """

    name: str
    settings: str

    def describe(self, images: Sequence[Path], emit: Emit) -> list[str]:
        """One caption an image, in order; an empty string where only the trigger shall stand."""
        ...


@dataclass(frozen=True)
class GridImages:
    """What a metric sees: generated images of one cell with their prompts, the references, and the base's images."""

    images: Sequence[Image]
    prompts: Sequence[str]
    references: Sequence[Image]


class Embedder(Protocol):
    """An image and text encoder. `id` names model, weights and preprocessing; `meaningful` is false for made-up weights."""

    id: str
    meaningful: bool

    def encode_images(self, images: Sequence[Image]) -> np.ndarray:
        """float32 [N, D], unit length."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [N, D], unit length."""
        ...


@dataclass(frozen=True)
class ExportJob:
    """All that an exporter needs. It writes below `folder`, which is empty."""

    spec: StyleSpec
    run: RunPaths
    trained: Trained
    weights: Path
    preview: Path | None
    folder: Path


class Exporter(Protocol):
    """Packs one UI's folder."""

    def __call__(self, job: ExportJob) -> Package: ...
