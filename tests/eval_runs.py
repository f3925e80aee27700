"""Runs, a made-up generator and the stage `evaluate` around them: for tests that need no model."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from brushset.generator import ImageJob, Mix, Sampling
from brushset.load import spec_text
from brushset.paths import RunPaths
from brushset.pipeline import StageContext
from brushset.prepare.holdout import seal_of
from brushset.records import BaseFile, EvalReport, Prepared, PreparedImage, Trained
from brushset.spec import EvaluateSection, StyleSpec
from brushset.stage_records import StageRecord
from eval.look import load_extractors
from eval.stage import STAGE

SETTINGS = EvaluateSection(
    prompts=("a cat", "a house"), seeds=(1, 2, 9), width=64, height=64, steps=2, batch_size=4, weights=(0.4, 1.0),
    clip_model="random", csd_model="random", dinov2_model="random", inception="random", lpips_model="random",
)  # fmt: skip


class FakeGenerator:
    """Noise that depends on prompt, seed and mix; remembers what it was asked."""

    def __init__(self, *_: object, **__: object) -> None:
        self.loaded: dict[str, Path] = {}
        self.asked: list[tuple[list[ImageJob], Sampling]] = []

    def load_lora(self, path: Path, name: str) -> None:
        assert path.is_file()
        self.loaded[name] = path

    def generate_jobs(self, jobs: Sequence[ImageJob], sampling: Sampling | None = None):
        assert sampling
        self.asked.append((list(jobs), sampling))
        for index in reversed(range(len(jobs))):  # no order is promised
            yield index, self._image(jobs[index].prompt, jobs[index].seed, jobs[index].mix, sampling)

    def _image(self, prompt: str, seed: int, mix: Mix, sampling: Sampling) -> Image.Image:
        random = np.random.default_rng(zlib.crc32(repr((prompt, seed, mix)).encode()))
        return Image.fromarray(random.integers(0, 256, (sampling.height, sampling.width, 3), dtype=np.uint8))


def make_spec(name: str = "cartoon", **changes: Any) -> StyleSpec:
    return StyleSpec(name=name, trigger=f"{name}style", evaluate=SETTINGS, **changes)


def trained(sha256: str, base: str, *, base_random: bool = False) -> Trained:
    return Trained(
        engine="native", engine_version="1", command=(), weights="weights/lora.safetensors", weights_sha256=sha256,
        checkpoints=(), steps=2, epochs=1, losses=(), seconds=1, device="cpu", modules=264, tensors=792,
        base_sha256=base, base_random=base_random,
    )  # fmt: skip


def add_run(runs: Path, style: str, run_id: str, record: Trained) -> RunPaths:
    run = RunPaths(runs / style / run_id)
    run.weights.mkdir(parents=True)
    (run.weights / "lora.safetensors").write_bytes(b"weights")
    run.manifest.write_text("{}")
    run.spec.write_text(spec_text(make_spec(style)))
    stage = StageRecord(
        stage="train", version=1, digest="d", started_at=0, ended_at=1, outputs={}, data=record.model_dump(mode="json")
    )
    run.record("train").parent.mkdir()
    run.record("train").write_text(stage.model_dump_json())
    return run


def draw_prepared(run: RunPaths, *, held: int) -> Prepared:
    """Five images trained on, and some held out, in the run."""
    run.heldout.mkdir(parents=True, exist_ok=True)
    images = []
    for index in range(5 + held):
        name, size = f"{'heldout/' if index >= 5 else ''}{index}.png", (96 + 8 * index, 80)
        Image.linear_gradient("L").rotate(40 * index).resize(size).convert("RGB").save(run.images / name)
        images.append(
            PreparedImage(
                name=name, source="s", source_sha256=f"{index}", width_px=size[0], height_px=80, upscaled_by=1
            )
        )
    return Prepared(images=tuple(images[:5]), heldout=tuple(images[5:]), seal=seal_of(images[5:]), skipped={})


def run_stage(
    run: RunPaths,
    spec: StyleSpec,
    record: Trained,
    patch: pytest.MonkeyPatch,
    *,
    base_sha256: str = "base",
    held: int = 0,
    generator: type = FakeGenerator,
) -> tuple[EvalReport, Path, list[str]]:
    base = BaseFile(name="b", path="/b", kind="folder", sha256=base_sha256, random=False, narrow=False)
    patch.setattr("eval.base_model.resolve_base", lambda *_: base)
    patch.setattr("eval.stage.MultiLoRAGenerator", generator)
    patch.setattr("eval.stage.predict_pairs", lambda *_: {})
    prepared = draw_prepared(run, held=held)
    workdir = run.workdir("evaluate")
    workdir.mkdir()
    records = {Trained: record, Prepared: prepared}
    events: list[str] = []
    context = StageContext(spec, run, workdir, lambda event, **_: events.append(event), records, None)
    return STAGE.run(context), workdir, events


def as_if_real(spec: StyleSpec) -> dict[Any, Any]:
    """The made-up extractors, said to be real."""
    found = load_extractors(spec)
    return {
        name: dataclasses.replace(each, identity=dataclasses.replace(each.identity, meaningful=True))
        for name, each in found.items()
    }


def add_references(run: RunPaths, *, turned: int) -> None:
    """Prepared images of a partner: its run then has references."""
    prepared = draw_prepared(run, held=6)
    for path in sorted(run.images.rglob("*.png")):
        Image.open(path).rotate(turned).save(path)
    stage = StageRecord(
        stage="preprocess", version=1, digest="d", started_at=0, ended_at=1, outputs={},
        data=prepared.model_dump(mode="json"),
    )  # fmt: skip
    run.record("preprocess").write_text(stage.model_dump_json())
