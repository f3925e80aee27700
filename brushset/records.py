"""What each stage says when it is done: small, typed, kept as JSON in the run. Bulky detail goes to files beside.

Paths in a record are relative to the run folder, with forward slashes, so that a run can be moved or copied.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Record(BaseModel):
    """Immutable, closed; JSON both ways."""

    model_config = ConfigDict(frozen=True, extra="forbid")


ImageVerdict = Literal["ok", "needs upscaling", "unusable"]
SetVerdict = Literal["ok", "too few", "needs upscaling", "unusable"]


class AuditedImage(Record):
    """One file of the user's folder. Sizes are as displayed, EXIF orientation applied; 0 where it cannot be read."""

    path: str = Field(description="relative to the images folder")
    sha256: str
    size_bytes: int
    format: str = Field(description="by content, such as PNG; empty where it cannot be read")
    mode: str
    width_px: int
    height_px: int
    verdict: ImageVerdict
    reason: str = ""
    phash: str = Field("", description="64-bit perceptual hash, 16 hex digits")
    group: int | None = Field(None, description="number of its group of near-duplicates, where it has one")


class Audit(Record):
    """What is in the images folder. One line per image is in audit/images.json."""

    folder: str = Field(description="absolute path of the user's images")
    found: int = Field(description="files that claim to be images")
    ok: int
    needs_upscaling: int
    unusable: int
    verdict: SetVerdict
    reasons: tuple[str, ...] = Field(description="a line each: what was found, and the fix")
    formats: dict[str, int]
    min_side_px: int
    median_side_px: int
    max_side_px: int
    with_sidecar: int = Field(description="images that have a .txt caption beside them")


class PreparedImage(Record):
    """One image as the trainer will see it."""

    name: str = Field(description="file in images/, from the content's hash; heldout/… where it is not trained on")
    source: str = Field(description="relative to the user's folder")
    source_sha256: str
    width_px: int
    height_px: int
    upscaled_by: float = Field(description="1.0 where it was not")


class Prepared(Record):
    """The prepared images, sorted by name. `images` are trained on, `heldout` never are."""

    images: tuple[PreparedImage, ...]
    heldout: tuple[PreparedImage, ...] = ()
    seal: str = Field("", description="SHA-256 over the sorted source hashes of the held-out images")
    skipped: dict[str, str] = Field(description="source → reason")


class Caption(Record):
    """One caption: one line, trigger first."""

    image: str = Field(description="file name in images/")
    text: str
    source: str = Field(description="sidecar, edited, or the captioner's name")


class Captions(Record):
    """All captions, in the order of the images; those of held-out images follow."""

    captioner: str
    trigger: str
    captions: tuple[Caption, ...]


class EngineConfig(Record):
    """The rendered Kohya pair, and the arithmetic of a run's length."""

    engine: str
    images: int
    repeats: int
    arithmetic: str = Field(description="how repeats and steps came about, one line")
    batches_per_epoch: int
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


class Adapter(Record):
    """The diffusers form, and the proof that it equals the file as trained."""

    path: str
    modules: int
    max_relative_error: float = Field(description="largest ‖ΔW − ΔW'‖ / ‖ΔW‖ over all modules")


class Score(Record):
    """One number of one grid cell; None where it was not measured, with the reason in `note`."""

    metric: str
    cell: str
    value: float | None
    n: int
    higher_is_better: bool
    extractor: str
    meaningful: bool = Field(description="false where any model that took part is made up")
    note: str = ""


class Cell(Record):
    """Images made with one mix of adapters over the whole grid of prompts × seeds."""

    name: str = Field(description='"base", "cartoon 0.8", "cartoon 0.5 + anime 0.5"')
    mix: dict[str, float]
    images: tuple[str, ...]


class EvalReport(Record):
    """The grid and its scores. eval/scores.json holds the same."""

    cells: tuple[Cell, ...]
    scores: tuple[Score, ...]
    grid: str
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    meaningful: bool
    notes: tuple[str, ...]


class Package(Record):
    """One UI's folder."""

    target: str
    folder: str
    files: tuple[str, ...]
    install: str = Field(description="where to drop it, one line")


class Exports(Record):
    """The packages made."""

    packages: tuple[Package, ...]
    trigger: str
    weight: float


class Report(Record):
    """The page."""

    path: str
    verdict: str


class BaseFile(Record):
    """A base model on disk, family checked, hashed."""

    name: str = Field(description="as the user asked for it")
    path: str = Field(description="absolute: a diffusers folder or a single .safetensors file")
    kind: Literal["folder", "single-file"]
    sha256: str = Field(description="of the file, or over a folder's safetensors files")
    random: bool
    narrow: bool = Field(description="not SD 1.5's widths; only the embedded engine trains it")
