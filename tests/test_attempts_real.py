"""Claims about resuming, shown on real sd-scripts: a training of two images is killed three times, each time in another
way, and what is published is what an uninterrupted one leaves. And: validation, samples, the end of hope, NaN."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_engine_kohya import WRAPPER, Events
from train_until import make_job

from brushset.engines.kohya import KohyaEngine
from brushset.errors import VerificationFailed
from brushset.kohya.attempts.history import read_attempts
from brushset.kohya.source import Source
from brushset.lora.metadata import read_metadata
from brushset.lora.verify import verify_lora
from brushset.records import BaseFile, Trained
from brushset.stages.train import verify_trained

pytestmark = [pytest.mark.vendor, pytest.mark.slow]


def write_images(folder: Path, *, count: int = 2) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 255, (128, 128, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"inkstyle, thing {index}\n", encoding="utf-8")


@pytest.fixture(autouse=True)
def on_the_narrow_base(monkeypatch: pytest.MonkeyPatch, sd_scripts: Source, tiny_base: BaseFile) -> None:
    monkeypatch.setenv("SD_SCRIPTS_DIR", str(sd_scripts.folder))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def run(root: Path, settings: dict[str, Any], how: str, step: int = 0) -> tuple[int, str]:
    """One process that trains; its exit code, and what it said: its record where it came to the end."""
    script = Path(__file__).with_name("train_until.py")
    environment = {"PYTHONPATH": str(script.parent.parent)}
    done = subprocess.run(
        [sys.executable, str(script), str(root), json.dumps(settings), how, str(step)],
        capture_output=True, text=True, check=False, env={**os.environ, **environment},
    )  # fmt: skip
    return done.returncode, done.stdout.splitlines()[-1] if done.returncode == 0 else done.stderr


@pytest.mark.parametrize(
    ("settings", "kills", "began"),
    [
        # 4 batches an epoch, 24 steps: inside a state; then our own process; then a signal to it.
        ({"epochs": 6}, [("state", 3), ("us", 8), ("term", 14)], [0, 2, 7, 13]),
        # 6 batches an epoch, 3 steps of two: states of whole epochs alone.
        (
            {"epochs": 8, "repeats": 3, "gradient_accumulation_steps": 2},
            [("trainer", 4), ("us", 10), ("term", 16)],
            [0, 3, 9, 15],
        ),
        # 4 batches an epoch and 22 steps: the last epoch is cut short.
        ({"max_steps": 22}, [("trainer", 3), ("us", 8), ("term", 14)], [0, 2, 7, 13]),
    ],
)
def test_a_real_training_killed_three_times_takes_the_steps_of_an_uninterrupted_one(
    tmp_path: Path, settings: dict[str, Any], kills: list[tuple[str, int]], began: list[int]
) -> None:
    write_images(tmp_path / "whole" / "ink" / "one" / "images")
    write_images(tmp_path / "killed" / "ink" / "one" / "images")
    code, said = run(tmp_path / "whole", settings, "end")
    assert code == 0, said
    whole = Trained.model_validate_json(said)
    for how, step in kills:
        code, said = run(tmp_path / "killed", settings, how, step)
        assert code == {"state": 5, "trainer": 5, "us": -9, "term": 143}[how], said
    code, said = run(tmp_path / "killed", settings, "end")
    assert code == 0, said
    trained = Trained.model_validate_json(said)
    assert (trained.steps, trained.epochs) == (whole.steps, whole.epochs)
    assert [(item.path, item.epoch, item.step) for item in trained.checkpoints] == [
        (item.path, item.epoch, item.step) for item in whole.checkpoints
    ]
    assert [point.step for point in trained.losses] == list(range(1, whole.steps + 1))
    assert [point.lr for point in trained.losses] == [point.lr for point in whole.losses]
    starts = [item.from_step for item in trained.attempts]
    assert len(starts) == 4
    # A narrow step takes some 30 ms: while its line is read and the signal travels, the trainer may take a few more.
    assert all(0 <= start - least <= 4 for start, least in zip(starts, began, strict=True)), starts
    output = make_job(tmp_path / "killed", settings).output_dir  # emptied again: the engine publishes what is finished
    published = KohyaEngine(WRAPPER).train(make_job(tmp_path / "killed", settings), Events())
    for name, step in [(item.path, item.step) for item in published.checkpoints] + [
        (published.weights, published.steps)
    ]:
        assert read_metadata(output / name)["ss_steps"] == str(step)
        verify_lora(output / name, dim=4, alpha=2.0, text_encoder=True, narrow=True)


def test_exactly_the_held_out_images_are_validated_on_and_samples_are_made(tmp_path: Path) -> None:
    settings = {"epochs": 3, "validate_every_n_epochs": 1, "early_stop_patience": 3, "sample_every_n_epochs": 2}
    job = make_job(tmp_path, settings)
    small = job.spec.evaluate.model_copy(
        update={"prompts": ("a cat", "a dog --w 9"), "width": 64, "height": 64, "steps": 2}
    )
    object.__setattr__(job, "spec", job.spec.model_copy(update={"evaluate": small}))
    write_images(job.run.images)
    write_images(job.run.heldout, count=3)
    events = Events()
    trained = KohyaEngine(WRAPPER).train(job, events)
    verify_trained(job, trained)
    log = job.run.train_log.read_text(encoding="utf-8")
    assert "num train images * repeats / 学習画像の数×繰り返し回数: 4" in log
    assert "num validation images * repeats / 学習画像の数×繰り返し回数: 3" in log
    assert [point.epoch for point in trained.validation] == [1, 2, 3]
    assert all(0 < point.loss < 10 for point in trained.validation)
    assert [item["epoch"] for item in events.of("validation")] == [1, 2, 3]
    assert [(item.epoch, item.prompt) for item in trained.samples] == [
        (2, "inkstyle, a cat"),
        (2, "inkstyle, a dog --w 9"),
    ]
    with Image.open(job.output_dir / trained.samples[1].path) as image:
        assert image.size == (64, 64)
    best = min(trained.validation, key=lambda point: point.loss)
    assert trained.best_epoch == best.epoch
    assert read_metadata(job.output_dir / trained.weights)["ss_epoch"] == str(best.epoch)
    assert {item["what"] for item in events.of("progress")} >= {"caching latents", "validation images"}


def test_weights_driven_to_nan_are_stopped_at_once(tmp_path: Path) -> None:
    job = make_job(tmp_path, {"epochs": 40, "optimizer_args": ("weight_decay=1e9",)})  # a million times larger a step
    write_images(job.run.images)
    events = Events()
    with pytest.raises(VerificationFailed, match="the loss became NaN by step"):
        KohyaEngine(WRAPPER).train(job, events)
    (record,) = read_attempts(job.attempts)
    assert record.ending == "diverged"
    finite = [item for item in events.of("train_step") if math.isfinite(float(str(item["loss"])))]
    assert record.last_step <= len(finite) + 2
