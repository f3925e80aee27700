"""Claims about configuring and training as stages: a run's length, and that no engine is believed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from brushset import engines
from brushset.errors import EnvironmentProblem, InputError, UsageError, VerificationFailed
from brushset.files import publish_folder, read_toml, sha256_file
from brushset.load import build_spec
from brushset.lora.keys import expected_shapes
from brushset.paths import RunPaths
from brushset.pipeline import StageContext
from brushset.prepare.holdout import seal_of
from brushset.process import process_file
from brushset.protocols import Emit, TrainJob
from brushset.records import BaseFile, Checkpoint, EngineConfig, LossPoint, Prepared, PreparedImage, Record, Trained
from brushset.spec import StyleSpec
from brushset.stages import configure, train
from brushset.stages.configure import count_steps
from brushset.stages.train import expected_checkpoints

SIZES = [(128, 128), (128, 128), (128, 128), (240, 80)]


def make_spec(**settings: Any) -> StyleSpec:
    own = {"engine": "fake", "network_dim": 1, "network_alpha": 1.0, "batch_size": 2, "epochs": 3, "repeats": 1}
    train = {**own, "min_bucket_reso": 64, "max_bucket_reso": 256, **settings}
    spec = build_spec(
        [("test", {"name": "ink", "trigger": "inkstyle", "base": {"model": "random:tiny"}, "dataset": {"resolution": 128},
                   "train": {**train, "engine": "native"}})]
    )  # fmt: skip
    return spec.model_copy(update={"train": spec.train.model_copy(update={"engine": train["engine"]})})


def spoil_nothing(folder: Path, about: dict[str, Any]) -> None:
    """A good training."""


class FakeEngine:
    """Leaves the files of a good training; `spoil` changes them before they are described."""

    name = "fake"

    def __init__(self, spoil: Callable[[Path, dict[str, Any]], None] = spoil_nothing) -> None:
        self.spoil = spoil

    def command(self, job: TrainJob) -> list[str]:
        return []

    def train(self, job: TrainJob, emit: Emit) -> Trained:
        for name in ("ink", "ink-000001", "ink-000002"):
            write_lora(job.output_dir / f"{name}.safetensors")
        (job.output_dir / "sample").mkdir()
        (job.output_dir / "sample" / "a.png").touch()
        about: dict[str, Any] = {"steps": job.steps, "losses": [0.5, 0.4]}
        (job.output_dir / "ink.safetensors").chmod(0o600)
        self.spoil(job.output_dir, about)
        return describe(job, about)


def write_lora(path: Path, **changed: np.ndarray[Any, Any]) -> None:
    rng = np.random.default_rng(0)
    tensors: dict[str, Any] = {}
    for name, shape in expected_shapes(1, text_encoder=True).items():
        tensors[name] = rng.standard_normal(shape).astype(np.float16) if shape else np.ones((), np.float16)
    save_file({**tensors, **changed}, path)


def describe(job: TrainJob, about: dict[str, Any]) -> Trained:
    def sha256(path: Path) -> str:
        return sha256_file(path) if path.is_file() else "0" * 64

    kept = sorted(job.output_dir.glob("ink-*.safetensors"))
    final = job.output_dir / "ink.safetensors"
    return Trained(
        engine="fake", engine_version="1", command=(), weights=final.name, weights_sha256=sha256(final),
        checkpoints=tuple(Checkpoint(path=path.name, epoch=1, step=1, sha256=sha256(path)) for path in kept),
        steps=about["steps"], epochs=3, losses=tuple(LossPoint(step=i + 1, loss=loss) for i, loss in enumerate(about["losses"])),
        seconds=1.0, device="cpu", modules=264, tensors=792, base_sha256=job.base.sha256, base_random=True,
    )  # fmt: skip


class Rig:
    """Runs the two stages as the pipeline does: each in a folder of its own, published when it returns."""

    def __init__(self, root: Path, spec: StyleSpec) -> None:
        self.spec, self.run = spec, RunPaths(root / "runs" / "ink" / "one")
        self.events: list[tuple[str, dict[str, object]]] = []
        self.run.images.mkdir(parents=True)
        images = []
        for index, (width, height) in enumerate(SIZES):
            Image.new("RGB", (width, height)).save(self.run.images / f"{index}.png")
            (self.run.images / f"{index}.txt").write_text(f"inkstyle, thing {index}\n")
            images.append(
                PreparedImage(
                    name=f"{index}.png", source="x", source_sha256="0" * 64, width_px=width, height_px=height, upscaled_by=1.0
                )
            )  # fmt: skip
        self.records: dict[type[Record], Record] = {Prepared: Prepared(images=tuple(images), skipped={})}

    def emit(self, event: str, /, **fields: object) -> None:
        self.events.append((event, fields))

    def perform(self, stage: Any) -> Any:
        workdir = self.run.workdir(stage.name)
        workdir.mkdir()
        record = stage.run(StageContext(self.spec, self.run, workdir, self.emit, self.records, None))
        publish_folder(workdir, self.run.root / stage.output)
        self.records[stage.record] = record
        return record


@pytest.fixture
def train_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Rig, Trained]]:
    """Configures and trains with an engine that is spoilt in one way."""

    def run(spoil: Callable[[Path, dict[str, Any]], None] = spoil_nothing, **settings: Any) -> tuple[Rig, Trained]:
        monkeypatch.setattr(engines, "ENGINES", {"fake": lambda: FakeEngine(spoil)})
        base = BaseFile(name="made up", path="/nowhere", kind="folder", sha256="0" * 64, random=True, narrow=False)
        monkeypatch.setattr(train, "resolve_base", lambda *_: base)
        monkeypatch.setattr(train, "tokenizer_dir", lambda _: Path("/nowhere"))
        rig = Rig(tmp_path, make_spec(**settings))
        rig.perform(configure.STAGE)
        return rig, rig.perform(train.STAGE)

    return run


def test_the_pair_and_the_arithmetic_of_the_run_are_written(tmp_path: Path) -> None:
    rig = Rig(tmp_path, make_spec())
    config = rig.perform(configure.STAGE)
    assert config == EngineConfig(
        engine="fake",
        images=4,
        repeats=1,
        arithmetic=(
            "repeats 1: as the style says; 3 batches an epoch × 3 epochs → 9 optimizer steps; effective batch 2; "
            "learning rate cosine over 9 steps"
        ),
        batches_per_epoch=3,
        epochs=3,
        steps=9,
        buckets={"128x128": 3, "192x64": 1},
    )
    assert read_toml(rig.run.dataset_toml)["datasets"][0]["batch_size"] == 2
    assert read_toml(rig.run.training_toml)["training"]["max_train_epochs"] == 3


@pytest.mark.parametrize(
    ("settings", "batches", "expected"),
    [
        ({"epochs": 20}, 7, (140, 20)),
        ({"epochs": 20, "gradient_accumulation_steps": 2}, 7, (80, 20)),
        ({"max_steps": 2}, 7, (2, 1)),
        ({"max_steps": 15}, 7, (15, 3)),
        ({"max_steps": 14}, 7, (14, 2)),
        ({"max_steps": 9, "gradient_accumulation_steps": 4}, 7, (9, 5)),
    ],
)
def test_steps_and_epochs_are_counted_as_sd_scripts_counts(
    settings: dict[str, Any], batches: int, expected: tuple[int, int]
) -> None:
    assert count_steps(make_spec(**settings).train, batches) == expected


def test_images_without_captions_are_named(tmp_path: Path) -> None:
    rig = Rig(tmp_path, make_spec())
    (rig.run.images / "0.txt").unlink()
    (rig.run.images / "2.txt").write_text(" \n")
    with pytest.raises(InputError) as caught:
        rig.perform(configure.STAGE)
    lines = str(caught.value).splitlines()
    assert [Path(line.split(":")[0]).name for line in lines] == ["0.txt", "2.txt"]


def test_an_unknown_extra_option_stops_before_anything_is_written(tmp_path: Path) -> None:
    rig = Rig(tmp_path, make_spec(extra={"ip_noise_gama": 0.1}))
    with pytest.raises(UsageError, match='did you mean "ip_noise_gamma"'):
        rig.perform(configure.STAGE)
    assert not rig.run.dataset_toml.exists()


def test_a_good_training_is_published_with_paths_of_the_run(train_with: Callable[..., tuple[Rig, Trained]]) -> None:
    rig, trained = train_with()
    assert trained.weights == "weights/ink.safetensors"
    assert [item.path for item in trained.checkpoints] == [
        "weights/ink-000001.safetensors",
        "weights/ink-000002.safetensors",
    ]
    assert sorted(path.name for path in rig.run.weights.iterdir()) == [
        "ink-000001.safetensors", "ink-000002.safetensors", "ink.safetensors",
    ]  # fmt: skip
    assert {path.stat().st_mode & 0o777 for path in rig.run.weights.iterdir()} == {0o644}
    assert (rig.run.logs / "trainer" / "sample" / "a.png").is_file()


def break_tensor(folder: Path, about: dict[str, Any]) -> None:
    key = "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight"
    write_lora(
        folder / "ink.safetensors", **{key: np.full(expected_shapes(1, text_encoder=True)[key], np.nan, np.float16)}
    )


def change_later(folder: Path, about: dict[str, Any]) -> None:
    key = "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"
    write_lora(folder / "ink-000001.safetensors", **{key: np.ones((4, 1), np.float16)})


def lose_the_final_file(folder: Path, about: dict[str, Any]) -> None:
    (folder / "ink.safetensors").unlink()


def cut_the_final_file(folder: Path, about: dict[str, Any]) -> None:
    (folder / "ink.safetensors").write_bytes(b"short")


def lose_an_epoch(folder: Path, about: dict[str, Any]) -> None:
    (folder / "ink-000002.safetensors").unlink()


def stop_early(folder: Path, about: dict[str, Any]) -> None:
    about["steps"] = 8


def lose_the_loss(folder: Path, about: dict[str, Any]) -> None:
    about["losses"] = [0.1, float("nan")]


@pytest.mark.parametrize(
    ("spoil", "finding"),
    [
        (lose_the_final_file, "ink.safetensors: the engine said it was written"),
        (cut_the_final_file, "not a safetensors file, or cut short"),
        (lose_an_epoch, "1 epoch files are missing, the first is ink-000002"),
        (stop_early, "trained for 8 steps in 3 epochs, 9 in 3 were asked for"),
        (lose_the_loss, "loss was NaN or infinite at 1 steps, first at 2"),
        (break_tensor, "1 of 792 tensors hold NaN"),
        (change_later, "ink-000001.safetensors: 1 tensors have the wrong shape"),
    ],
)
def test_what_an_engine_did_wrong_is_found(
    train_with: Callable[..., tuple[Rig, Trained]], spoil: Callable[[Path, dict[str, Any]], None], finding: str
) -> None:
    with pytest.raises(VerificationFailed) as caught:
        train_with(spoil)
    assert finding in str(caught.value)
    assert caught.value.exit_code == 6


def test_a_file_of_another_rank_is_found(train_with: Callable[..., tuple[Rig, Trained]]) -> None:
    with pytest.raises(VerificationFailed, match="tensors have the wrong shape"):
        train_with(network_dim=2)


def test_an_orphan_of_an_earlier_run_is_stopped_first(
    tmp_path: Path, train_with: Callable[..., tuple[Rig, Trained]]
) -> None:
    import psutil

    record = process_file(RunPaths(tmp_path / "runs" / "ink" / "one").train_log)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as orphan:
        entry = {"pid": orphan.pid, "create_time": psutil.Process(orphan.pid).create_time()}
        record.parent.mkdir(parents=True)
        record.write_text(json.dumps({"processes": [entry]}))
        rig, _ = train_with()
        orphan.wait(10)
    assert any("left behind" in str(fields) for event, fields in rig.events if event == "warning")
    assert not record.exists()


def test_a_disk_too_small_for_all_epochs_is_found_before_training(
    train_with: Callable[..., tuple[Rig, Trained]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1 << 20}))
    with pytest.raises(EnvironmentProblem, match="1 MiB free, 4 files want"):
        train_with()


@pytest.mark.parametrize(
    ("epochs", "every", "names"),
    [(1, 1, []), (3, 1, ["x-000001", "x-000002"]), (4, 2, ["x-000002"]), (5, 2, ["x-000002", "x-000004"]), (2, 9, [])],
)
def test_the_last_epoch_is_the_final_file(epochs: int, every: int, names: list[str]) -> None:
    assert expected_checkpoints("x", epochs, every) == {f"{name}.safetensors" for name in names}


def test_beside_the_best_epoch_the_last_one_is_kept() -> None:
    assert expected_checkpoints("x", 5, 2, best_epoch=3) == {f"x-00000{epoch}.safetensors" for epoch in (2, 4, 5)}
    assert expected_checkpoints("x", 5, 2, best_epoch=5) == {f"x-00000{epoch}.safetensors" for epoch in (2, 4)}


class KeepingEngine(FakeEngine):
    """Leaves something to go on from, and notes whether it found that."""

    found: bool

    def train(self, job: TrainJob, emit: Emit) -> Trained:
        self.found = (job.attempts / "state").is_file()
        self.job = job
        job.attempts.mkdir(parents=True, exist_ok=True)
        (job.attempts / "state").touch()
        return super().train(job, emit)


def train_again(rig: Rig, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, *, forced: bool = False) -> None:
    monkeypatch.setattr(engines, "ENGINES", {"fake": lambda: engine})
    shutil.rmtree(rig.run.workdir("train"), ignore_errors=True)
    rig.run.workdir("train").mkdir()
    context = StageContext(rig.spec, rig.run, rig.run.workdir("train"), rig.emit, rig.records, None, "ab" * 32, forced)
    train.STAGE.run(context)


def test_what_an_engine_keeps_is_found_again_unless_training_is_forced(
    train_with: Callable[..., tuple[Rig, Trained]], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, _ = train_with()
    engine = KeepingEngine()
    seen = []
    for forced in (False, False, True):
        train_again(rig, engine, monkeypatch, forced=forced)
        seen.append((engine.found, engine.job.anew))
    assert seen == [(False, False), (True, False), (False, True)]
    assert engine.job.attempts == rig.run.attempts / ("ab" * 6)


def test_a_held_out_image_among_the_others_is_refused_before_anything_is_trained(
    train_with: Callable[..., tuple[Rig, Trained]], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, _ = train_with()
    held = rig.run.images / "heldout" / "9.png"
    held.parent.mkdir()
    Image.new("RGB", (96, 96), "red").save(held)
    image = PreparedImage(
        name="heldout/9.png", source="y", source_sha256="9" * 64, width_px=96, height_px=96, upscaled_by=1.0
    )
    prepared = rig.records[Prepared]
    assert isinstance(prepared, Prepared)
    rig.records[Prepared] = prepared.model_copy(update={"heldout": (image,), "seal": seal_of([image])})
    engine = KeepingEngine()
    train_again(rig, engine, monkeypatch)
    shutil.copy(held, rig.run.images / "late.png")
    del engine.job
    with pytest.raises(VerificationFailed, match=r"late\.png: a copy of the held-out heldout/9\.png"):
        train_again(rig, engine, monkeypatch)
    assert not hasattr(engine, "job")


def test_what_led_to_a_wrong_result_is_set_aside(
    train_with: Callable[..., tuple[Rig, Trained]], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, _ = train_with()
    for _ in range(2):
        with pytest.raises(VerificationFailed):
            train_again(rig, KeepingEngine(break_tensor), monkeypatch)
    assert [path.name for path in rig.run.attempts.iterdir()] == ["ab" * 6 + "-refused"]
    engine = KeepingEngine()
    train_again(rig, engine, monkeypatch)
    assert not engine.found
