"""The seams: what an engine, a captioner, a metric and an exporter must offer. One table a folder lists them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from brushset.errors import BrushsetError
from brushset.paths import RunPaths
from brushset.records import BaseFile, Choice, Package, Trained
from brushset.spec import StyleSpec

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image


class Emit(Protocol):
    """Receives progress. Known events and their fields:

    `stage_start` stage · `stage_skip` stage, reason · `stage_end` stage, seconds · `progress` what, done, total, and
    where known per_s, eta_s ·
    `train_step` step, total, loss, lr, it_per_s, eta_s, and of kohya epoch, smoothed · `attempt` number, from_step,
    batch_size, gradient_accumulation_steps, gradient_checkpointing · `validation` epoch, loss, and of native train_loss
    · `phase` what, seconds: a part of a stage that has ended · `run_state` name, state, words, folder, executor: of a
    run that an executor does · `note` text · `warning` text.
    """

    def __call__(self, event: str, /, **fields: object) -> None: ...


@dataclass(frozen=True)
class TrainJob:
    """All that an engine needs. The pair of Kohya TOMLs says what to train; their paths are relative to `run.root`,
    which is the trainer's working directory. What is to be published is left in `output_dir`, which is empty and does
    not outlive this process; `attempts` does. `buckets` are images a bucket; `anew` forgets what is known of memory.
    """

    spec: StyleSpec
    run: RunPaths
    base: BaseFile
    tokenizer_dir: Path
    output_dir: Path
    steps: int
    batches_per_epoch: int
    buckets: Mapping[str, int] = field(default_factory=dict)
    repeats: int = 1
    attempts_dir: Path | None = None
    anew: bool = False

    @property
    def attempts(self) -> Path:
        """Where an unfinished training is kept, so that the next one goes on from it."""
        return self.attempts_dir or self.run.attempts / "job"


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


class PackingEngine(Engine, Protocol):
    """A trainer that trains several jobs in one pass."""

    def train_together(self, jobs: Sequence[tuple[TrainJob, Emit]]) -> Iterator[tuple[int, Trained | BrushsetError]]:
        """Trains them, as many at once as fit together, each told of through its own `emit`. Yields each one's place and
        what `train` would return or raise, as it ends; one that fails does not touch the others.
        """
        ...


@dataclass(frozen=True)
class Subject:
    """An image to caption: as prepared, and the user's file that it was made from."""

    image: Path
    source: Path


Describe = Callable[[Sequence[Subject]], list[str]]


class Captioner(Protocol):
    """Writes the captions that no sidecar supplies: content only, without the trigger, an empty string where only the
    trigger shall stand. `settings` names what, besides images and weights, its captions depend on.
    """

    name: str
    settings: str
    batch_size: int

    def weights(self) -> str:
        """Which weights it reads, by commit or digest; empty where it reads none and asking again costs nothing."""
        ...

    def load(self, emit: Emit) -> Describe:
        """Gets ready, and returns what captions one batch, in order.

        Raises:
            EnvironmentProblem: a model is not to be had.
        """
        ...


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
class MixPart:
    """One adapter of a recommended mix. `lora` is its file as packages hold it."""

    style: str
    trigger: str
    weight: float
    lora: Path


@dataclass(frozen=True)
class RecommendedMix:
    """Adapters that go together, this style's first, as a weighted sum, and an image made with them. `reason`: why these
    weights; `note`: what a UI cannot do of what is advised.
    """

    parts: tuple[MixPart, ...]
    preview: Path | None
    reason: str = ""
    note: str = ""


@dataclass(frozen=True)
class Advice:
    """Which checkpoint packages hold, and at which weight it is recommended. `reason` is a sentence; `choice` what it was
    chosen by, None where the stage `choose` said nothing of it.
    """

    weight: float
    epoch: int
    steps: int
    sha256: str
    reason: str = ""
    choice: Choice | None = None


@dataclass(frozen=True)
class ExportJob:
    """All that an exporter needs. It writes below `folder`, which is empty. `weights` is the chosen checkpoint as trained,
    `lora` the file that packages hold: the same tensors, the header complete.
    """

    spec: StyleSpec
    run: RunPaths
    trained: Trained
    weights: Path
    lora: Path
    preview: Path | None
    folder: Path
    advice: Advice
    mixes: tuple[RecommendedMix, ...] = ()


class Exporter(Protocol):
    """Packs one UI's folder."""

    def __call__(self, job: ExportJob) -> Package: ...


@dataclass(frozen=True)
class Task:
    """One command on one run folder. It is done where the records of `stages` are there and their outputs verify: never
    because an engine says so.
    """

    run: RunPaths
    argv: tuple[str, ...]
    stages: tuple[str, ...]


@dataclass(frozen=True)
class Handle:
    """A task that an executor was given; `job` is the engine's own name for it."""

    task: Task
    submission: str
    job: str = ""


@dataclass(frozen=True)
class Standing:
    """How far a task is. `exit_code` is of a run that failed, None where it died without a word; `words` say why, on one
    line.
    """

    state: Literal["waiting", "running", "finished", "failed", "cancelled"]
    exit_code: int | None = None
    words: str = ""

    @property
    def over(self) -> bool:
        """Whether nothing more comes of it by itself."""
        return self.state not in {"waiting", "running"}


class Executor(Protocol):
    """Has commands run, somewhere. What an engine is for: queueing, placement, restart after the loss of a machine,
    cancellation. It wants to be asked every `poll_every_s`; `outlives` says that what it was given is done without us.
    """

    name: str
    poll_every_s: float
    outlives: bool

    def submit(self, tasks: Sequence[Task]) -> list[Handle]:
        """Hands over commands, each of which gets `--submission` and its name; returns at once.

        Raises:
            EnvironmentProblem: the engine is not there, or refuses.
        """
        ...

    def poll(self, handles: Sequence[Handle]) -> list[Standing]:
        """How far they are, in their order, by the runs' own records."""
        ...

    def cancel(self, handle: Handle) -> None:
        """Nothing of it runs any more, and nothing of it will."""
        ...

    def logs(self, handle: Handle) -> Path:
        """What its newest process said; the file may not be there yet."""
        ...

    def close(self) -> None:
        """Lets go of the engine. What cannot live without us is stopped."""
        ...
