"""The native engine as the pipeline sees it: one job in, Kohya's files and a record out."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from native_case import make_run, settings_of, write_pair

from brushset.engines.native import NativeEngine
from brushset.errors import UsageError
from brushset.files import sha256_file
from brushset.log import silent
from brushset.native.dataset import plan_length, read_training_set
from brushset.paths import PROJECT, RunPaths
from brushset.protocols import Engine, TrainJob
from brushset.records import BaseFile, Trained
from brushset.spec import StyleSpec, TrainSection


@dataclass
class Done:
    """One finished training and what it told."""

    job: TrainJob
    trained: Trained
    events: list[tuple[str, dict[str, Any]]]


def job_for(run: RunPaths, base: BaseFile) -> TrainJob:
    settings = settings_of(run)
    length = plan_length(read_training_set(settings).plan, settings.dataset, settings.training)
    spec = StyleSpec(name="cartoon", trigger="cartoonstyle")
    return TrainJob(spec, run, base, Path(), run.root / "out", length.steps, length.batches_per_epoch)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, tiny_base: BaseFile) -> Done:
    changes = {"logging_dir": "logs/tensorboard", "metadata_trigger_phrase": "cartoonstyle", "max_train_epochs": 3}
    run = make_run(tmp_path_factory.mktemp("odd 'name'") / "r\n1", {"caption_dropout_rate": 0.1}, changes)
    job = job_for(run, tiny_base)
    events: list[tuple[str, dict[str, Any]]] = []
    engine: Engine = NativeEngine("cpu")
    assert engine.command(job) == []
    return Done(job, engine.train(job, lambda event, **fields: events.append((event, fields))), events)


def test_the_record_tells_what_was_left(done: Done) -> None:
    trained, out = done.trained, done.job.output_dir
    assert sorted(path.name for path in out.iterdir()) == [
        "cartoon-000001.safetensors",
        "cartoon-000002.safetensors",
        "cartoon.safetensors",
    ]
    assert trained.weights == "cartoon.safetensors"
    assert trained.weights_sha256 == sha256_file(out / trained.weights)
    assert [(c.path, c.epoch, c.step) for c in trained.checkpoints] == [
        ("cartoon-000001.safetensors", 1, 3),
        ("cartoon-000002.safetensors", 2, 6),
    ]
    assert all(c.sha256 == sha256_file(out / c.path) for c in trained.checkpoints)
    assert (trained.steps, trained.epochs, trained.modules, trained.tensors) == (9, 3, 264, 792)
    assert [point.step for point in trained.losses] == list(range(1, 10))
    assert (trained.engine, trained.device, trained.base_random) == ("native", "cpu", True)


def test_the_file_has_792_finite_tensors_that_moved(done: Done) -> None:
    import torch
    from safetensors.torch import load_file

    tensors = load_file(done.job.output_dir / done.trained.weights)
    assert len(tensors) == 792
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    ups = [tensor for name, tensor in tensors.items() if name.endswith("lora_up.weight")]
    assert len(ups) == 264
    assert all(tensor.abs().max() > 0 for tensor in ups)


def test_each_file_says_which_epoch_and_step_it_is(done: Done) -> None:
    from safetensors import safe_open

    found = {}
    for path in done.job.output_dir.iterdir():
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        found[path.stem] = (metadata["ss_epoch"], metadata["ss_steps"])
        assert metadata["modelspec.trigger_phrase"] == "cartoonstyle"
        assert metadata["ss_caption_dropout_rate"] == "0.1"
    assert found == {"cartoon-000001": ("1", "3"), "cartoon-000002": ("2", "6"), "cartoon": ("3", "9")}


def test_every_step_is_told_with_its_numbers(done: Done) -> None:
    steps = [fields for event, fields in done.events if event == "train_step"]
    assert [fields["step"] for fields in steps] == list(range(1, 10))
    assert all(set(fields) == {"step", "total", "loss", "lr", "it_per_s", "eta_s"} for fields in steps)
    assert all(fields["total"] == 9 and fields["lr"] == 1e-3 and fields["it_per_s"] > 0 for fields in steps)
    assert steps[-1]["eta_s"] == 0
    assert [f["done"] for e, f in done.events if e == "progress"][-1] == 5


def test_the_log_has_a_line_a_step(done: Done) -> None:
    lines = done.job.run.train_log.read_text(encoding="utf-8").splitlines()
    assert sum(" loss " in line for line in lines) == 9
    assert "epoch 3/3 step 9/9 loss" in lines[-2]


def test_tensorboard_has_sd_scripts_scalars(done: Done) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (file,) = done.job.run.logs.glob("tensorboard/*/network_train/events.out.tfevents.*")
    events = EventAccumulator(str(file))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {
        "loss/current", "loss/average", "loss/epoch_average", "lr/unet", "lr/textencoder",
    }  # fmt: skip
    assert [each.step for each in events.Scalars("loss/current")] == list(range(1, 10))
    assert events.Scalars("lr/textencoder")[0].value == pytest.approx(5e-4)
    assert len(events.Scalars("loss/epoch_average")) == 3


def test_diffusers_loads_the_file_into_all_modules_and_it_acts(done: Done) -> None:
    import torch

    from brushset.bases.load import load_pipeline

    pipeline = load_pipeline(done.job.base)
    noisy, step, states = torch.ones(1, 4, 8, 8), torch.tensor([10]), torch.ones(1, 77, 32)
    with torch.no_grad():
        before = pipeline.unet(noisy, step, states).sample
    pipeline.load_lora_weights(done.job.output_dir, weight_name=done.trained.weights, adapter_name="cartoon")
    with torch.no_grad():
        assert not torch.allclose(before, pipeline.unet(noisy, step, states).sample, atol=1e-5)
    counts = [
        sum(name.endswith("lora_B.cartoon") for name, _ in model.named_modules())
        for model in (pipeline.unet, pipeline.text_encoder)
    ]
    assert counts == [192, 72]


def test_a_key_that_is_not_honoured_stops_before_anything_is_loaded(tmp_path: Path, tiny_base: BaseFile) -> None:
    run = make_run(tmp_path)
    job = job_for(run, tiny_base.model_copy(update={"path": "/nowhere"}))
    write_pair(run, {}, {"loss_type": "weird", "network_dropout": 0.1})
    with pytest.raises(UsageError, match='key "network_dropout"'):
        NativeEngine("cpu").train(job, lambda *_, **__: None)


def test_a_length_that_is_not_the_planned_one_is_refused(tmp_path: Path, tiny_base: BaseFile) -> None:
    job = replace(job_for(make_run(tmp_path), tiny_base), steps=99)
    with pytest.raises(UsageError, match="makes 6 steps of 3 batches an epoch, 99 and 3 were planned"):
        NativeEngine("cpu").train(job, lambda *_, **__: None)


def test_a_failed_training_says_so_in_its_log(tmp_path: Path, tiny_base: BaseFile) -> None:
    run = make_run(tmp_path, training={"mixed_precision": "fp16"})
    with pytest.raises(UsageError, match="needs a CUDA device"):
        NativeEngine("cpu").train(job_for(run, tiny_base), lambda *_, **__: None)
    assert "stopped: UsageError" in run.train_log.read_text(encoding="utf-8")


def test_the_version_is_the_projects() -> None:
    import brushset

    assert f'version = "{brushset.__version__}"' in (PROJECT / "pyproject.toml").read_text(encoding="utf-8")


def test_the_events_are_json(done: Done) -> None:
    assert json.loads(json.dumps(done.events))


def test_importing_the_engine_leaves_torch_out() -> None:
    code = "import sys, brushset.engines.native; print({'torch', 'diffusers', 'numpy'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"


def test_what_only_kohya_does_while_training_is_refused_by_name(tmp_path: Path) -> None:
    spec = StyleSpec(
        name="cartoon",
        trigger="t",
        train=TrainSection(engine="native", sample_every_n_epochs=2),
    )
    base = BaseFile(name="x", path="x", kind="folder", sha256="0", random=True, narrow=True)
    job = TrainJob(spec, RunPaths(tmp_path), base, tmp_path, tmp_path, 1, 1)
    with pytest.raises(UsageError, match="sample_every_n_epochs: the native engine has no"):
        NativeEngine().train(job, silent)
