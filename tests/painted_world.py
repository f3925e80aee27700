"""A world in which what an adapter does is known: its images say in red how much of the style they have, in green how much
they copy, in blue what they show. Networks read the colours. Nothing is trained and no model is loaded.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from brushset.errors import VerificationFailed
from brushset.generator import ImageJob, Mix, Sampling
from brushset.paths import RunPaths
from brushset.pipeline import StageContext
from brushset.prepare.holdout import seal_of
from brushset.records import BaseFile, Checkpoint, Prepared, PreparedImage, Trained
from brushset.spec import EvaluateSection, StyleSpec
from eval.embedder import Embedder, Identity, Towers
from eval.look import Extractor, Missing
from eval.lpips import PairDistances

PX, STYLE, COPY = 64, "inky", 0.85
SUBJECTS = ("a cat", "a dog", "a house", "a tree", "a boat", "a hill", "a lamp", "a cup", "a road", "a bird", "a fish",
            "a door", "a ship", "a king", "a tower", "a bell")  # fmt: skip
SETTINGS: dict[str, Any] = {
    "prompts": SUBJECTS, "seeds": (1, 2), "width": PX, "height": PX, "steps": 2, "weights": (0.6, 1.0), "weight": 0.8,
}  # fmt: skip
BASE = BaseFile(name="b", path="/b", kind="folder", sha256="base", random=False, narrow=False)


def style_of(epoch: int, weight: float) -> float:
    """Rises and levels off: at weight 1 it is 0.39 after 2 epochs, 0.78 after 6, 0.92 after 10."""
    return 1 - float(np.exp(-epoch * weight / 4))


def copied_of(epoch: int, weight: float) -> float:
    """Nothing until the adapter is over-trained."""
    return min(1.0, max(0.0, epoch * weight - 8) / 4)


@dataclass
class Painter:
    """In the place of MultiLoRAGenerator. `spoil` may change an image, or raise."""

    asked: ClassVar[list[ImageJob]] = []
    spoil: ClassVar[Callable[[ImageJob, Image.Image], Image.Image]] = staticmethod(lambda _, image: image)
    most: ClassVar[int] = 0
    loaded: dict[str, Path] = field(default_factory=dict)

    def __init__(self, *_: object, **__: object) -> None:
        self.loaded = {}

    def load_lora(self, path: Path, name: str) -> None:
        if path.read_bytes() == b"broken":
            raise VerificationFailed(f"{path}: values that are not finite")
        self.loaded[name] = path
        Painter.most = max(Painter.most, len(self.loaded))

    def unload_lora(self, name: str) -> None:
        del self.loaded[name]

    def generate_jobs(self, jobs: Sequence[ImageJob], sampling: Sampling | None = None) -> Iterator[tuple[int, Any]]:
        assert sampling
        for index, job in enumerate(jobs):
            assert all(name in self.loaded for name, _ in job.mix)
            Painter.asked.append(job)
            yield index, Painter.spoil(job, paint_job(job.prompt, job.seed, job.mix))


def paint_job(prompt: str, seed: int, mix: Mix) -> Image.Image:
    subject = prompt.rpartition(", ")[2]
    luck = np.random.default_rng(zlib.crc32(repr((subject, seed)).encode()))
    style, copied = (0.25 if "style, " in prompt else 0.0), 0.0
    for name, weight in mix:
        epoch = int(name.rpartition("@")[2])
        style, copied = style_of(epoch, float(weight)), copied_of(epoch, float(weight))
    red = 0.1 + 0.8 * style + luck.normal(0, 0.04)
    green = 0.5 + (COPY - 0.5) * copied + luck.normal(0, 0.02)
    return paint(red, green, content_of(subject) * (1 - 0.3 * copied), seed)


def content_of(text: str) -> float:
    """What a subject's images are blue by."""
    return 0.2 + 0.6 * (zlib.crc32(text.encode()) % 97) / 96


def paint(red: float, green: float, blue: float, seed: int) -> Image.Image:
    """An image of these mean colours, with a grain of its seed."""
    grain = np.random.default_rng(seed).normal(0, 0.03, (PX, PX, 3))
    values = np.clip(np.array([red, green, blue]) + grain - grain.mean((0, 1)), 0, 1)
    return Image.fromarray((255 * values).round().astype(np.uint8))


def colours(images: Sequence[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image, dtype=np.float64).mean((0, 1)) / 255 for image in images])


def at_angle(turn: np.ndarray) -> np.ndarray:
    """Vectors in a plane: the nearer two values, the more alike."""
    return np.stack([np.cos(turn * np.pi / 2), np.sin(turn * np.pi / 2)], axis=1)


def extractors(*, meaningful: bool = True, missing: Sequence[str] = ()) -> dict[Any, Extractor]:
    """What eval.look.load_extractors gives."""

    def embedder(name: str, towers: Towers) -> Extractor:
        if name in missing:
            return Missing(Identity(name, "", meaningful=False, note=f"{name} is not on this machine"))
        return Embedder(Identity(f"painted {name}", "0" * 64, meaningful=meaningful), lambda: towers)

    def read(texts: Sequence[str]) -> np.ndarray:
        return at_angle(np.array([content_of(text) for text in texts]))

    def distance(one: Any, other: Any) -> Any:
        return (one - other).abs().mean((1, 2, 3))

    return {
        "clip": embedder("clip", Towers(lambda images: at_angle(colours(images)[:, 2]), read)),
        "csd": embedder("csd", Towers(lambda images: at_angle(colours(images)[:, 0]))),
        "dinov2": embedder("dinov2", Towers(lambda images: at_angle(colours(images)[:, 1]))),
        "lpips": PairDistances(Identity("painted lpips", "", meaningful=meaningful), lambda: distance),
    }


def make_run(root: Path, *, epochs: int = 12, every: int = 2, **changes: Any) -> tuple[RunPaths, Trained, Prepared]:
    """A run that is trained, with checkpoints and pictures: those held out are of the style, those trained on are too."""
    run = RunPaths(root / STYLE / "1")
    run.weights.mkdir(parents=True)
    kept = []
    for epoch in range(every, epochs + 1, every):
        name = f"weights/{STYLE}{'' if epoch == epochs else f'-{epoch:06d}'}.safetensors"
        (run.root / name).write_bytes(b"weights")
        kept.append(Checkpoint(path=name, epoch=epoch, step=epoch, sha256=f"sha of {epoch}"))
    trained = Trained(
        engine="native", engine_version="1", command=(), weights=kept[-1].path, weights_sha256=kept[-1].sha256,
        checkpoints=tuple(kept[:-1]), steps=epochs, epochs=epochs, losses=(), seconds=1, device="cpu", modules=1,
        tensors=1, base_sha256="base", base_random=False,
    )  # fmt: skip
    return run, trained.model_copy(update=changes), draw_references(run)


def draw_references(run: RunPaths, *, held: int = 6) -> Prepared:
    run.heldout.mkdir(parents=True)
    images = []
    for index in range(8 + held):
        name = f"{'heldout/' if index >= 8 else ''}{index}.png"
        green = COPY if index < 8 else 0.5 - (COPY - 0.5)
        paint(0.9 + 0.01 * (index % 5), green, index / 20, index).save(run.images / name)
        images.append(
            PreparedImage(name=name, source="s", source_sha256=f"{index}", width_px=PX, height_px=PX, upscaled_by=1)
        )
    return Prepared(images=tuple(images[:8]), heldout=tuple(images[8:]), seal=seal_of(images[8:]), skipped={})


def make_context(
    made: tuple[RunPaths, Trained, Prepared], settings: dict[str, Any] | None = None, **changes: Any
) -> tuple[StageContext, list[str]]:
    """A stage's context, and what it says."""
    run, trained, prepared = made
    told: list[str] = []
    workdir = run.workdir("choose")
    workdir.mkdir()
    spec = StyleSpec(
        name=STYLE, trigger="inkystyle", evaluate=EvaluateSection(**{**SETTINGS, **(settings or {})}), **changes
    )

    def emit(event: str, /, **fields: object) -> None:
        told.append(f"{event}: {fields.get('text', '')}")

    return StageContext(spec, run, workdir, emit, {Trained: trained, Prepared: prepared}, None), told
