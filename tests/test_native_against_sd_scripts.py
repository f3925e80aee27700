"""The native engine's step held against sd-scripts' own, on the same weights, latents, captions, noise and timesteps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from native_case import make_run, settings_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from brushset.bases.load import load_components
from brushset.bases.tokenizer import tokenizer_dir
from brushset.engines.kohya import KohyaEngine
from brushset.engines.native import NativeEngine
from brushset.errors import EnvironmentProblem
from brushset.files import toml_text, write_atomic
from brushset.kohya.render import render_dataset, render_training
from brushset.kohya.source import find_source
from brushset.native.dataset import Batch, derive_seed, epoch_batches, plan_length, read_training_set
from brushset.native.latents import VAE_SCALE, encode_images
from brushset.native.noise import draw_noise
from brushset.native.session import Session, open_session
from brushset.paths import RunPaths
from brushset.protocols import TrainJob
from brushset.records import BaseFile
from brushset.spec import StyleSpec

OF_THIS_RUN = {
    "ss_session_id": "a random number",
    "ss_training_started_at": "the time",
    "ss_training_finished_at": "the time",
    "sshs_model_hash": "of the weights, which follow other random numbers",
    "sshs_legacy_hash": "of the weights, which follow other random numbers",
    "modelspec.date": "the time",
    "modelspec.implementation_version": "names the trainer",
    "ss_sd_model_name": "sd-scripts takes it from the path of the base, native what the user called it",
}
"""Metadata that differ from one run to the next, or between trainers, and why."""
NOT_WRITTEN = {
    "ss_sd_scripts_commit_hash": "native is not sd-scripts",
    "ss_sd_model_hash": "a hash of a folder, which sd-scripts takes for a file; native hashes single files",
    "ss_new_sd_model_hash": "a hash of a folder, which sd-scripts takes for a file; native hashes single files",
}
"""Metadata that sd-scripts may write and native does not, and why."""

CHILD = Path(__file__).parent / "tiny_sd_scripts" / "one_step.py"
TINY_TRAINER = Path(__file__).parent / "tiny_sd_scripts" / "train_network.py"
SPEC: dict[str, Any] = {
    "name": "cartoon",
    "trigger": "cartoonstyle",
    "base": {"model": "random:tiny"},
    "dataset": {"resolution": 64},
    "train": {
        "mixed_precision": "no",
        "network_dim": 4,
        "network_alpha": 2.0,
        "batch_size": 2,
        "gradient_accumulation_steps": 2,
        "repeats": 1,
        "epochs": 3,
        "min_bucket_reso": 64,
        "max_bucket_reso": 128,
        "optimizer_args": ("weight_decay=0.1",),
    },
}
pytestmark = [pytest.mark.vendor, pytest.mark.slow]


@pytest.fixture(scope="module", autouse=True)
def sd_scripts() -> None:
    """Skips this file where sd-scripts is absent."""
    try:
        find_source(fetch=False)
    except EnvironmentProblem as error:
        pytest.skip(str(error))


def open_on(root: Path, base: BaseFile, changes: dict[str, Any]) -> Session:
    """A session whose adapter already acts. At 64 px the mid block has one cell, and its attention no gradient."""
    run = make_run(root, {"resolution": 128}, changes)
    (run.images / "0.txt").write_text(", ".join(f"word number {n}" for n in range(40)))
    settings = settings_of(run)
    images = read_training_set(settings)
    models = load_components(base)
    latents = encode_images(images, models.vae, settings, lambda *_: None)
    length = plan_length(images.plan, settings.dataset, settings.training)
    session = open_session(settings, images, length, latents, models)
    generator = torch.Generator().manual_seed(4)
    for layer in session.adapter.layers.values():
        layer.up_master.copy_(0.05 * torch.randn(layer.up.shape, generator=generator))
    return session


def ask_sd_scripts(folder: Path, session: Session, batch: Batch, base: BaseFile) -> dict[str, torch.Tensor]:
    """sd-scripts' loss and gradients of what `session.backward(batch, 0)` draws."""
    recipe = session.settings.training
    generator = torch.Generator().manual_seed(derive_seed(recipe.seed, "batch", 0))
    latents = session.latents.take(batch, generator)
    drawn = draw_noise(latents.shape, generator, recipe)
    save_file(session.adapter.state(None), folder / "adapter.safetensors")
    save_file(
        {"latents": latents / VAE_SCALE, "noise": drawn.noise, "timesteps": drawn.timesteps},
        folder / "batch.safetensors",
    )
    given = {"network_dim": recipe.network_dim, "network_alpha": recipe.network_alpha, "clip_skip": recipe.clip_skip,
             "min_snr_gamma": recipe.min_snr_gamma, "max_token_length": recipe.max_token_length}  # fmt: skip
    job = {
        "base": base.path,
        "tokenizer": str(next(tokenizer_dir(base).iterdir())),
        "captions": [session.images.images[image].caption for image in batch.images],
        "args": ["--sdpa", *(f"--{key}={value}" for key, value in given.items() if value is not None)],
    }
    (folder / "job.json").write_text(json.dumps(job))
    environment = {**os.environ, "SD_SCRIPTS_DIR": str(find_source(fetch=False).folder), "OMP_NUM_THREADS": "1"}
    child = subprocess.run(
        [sys.executable, str(CHILD), str(folder)], env=environment, capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr[-3000:]
    assert "All keys matched" in child.stdout, child.stdout
    return load_file(folder / "result.safetensors")


@pytest.mark.parametrize("changes", [{}, {"clip_skip": 2, "max_token_length": 150, "min_snr_gamma": None}])
def test_one_steps_loss_and_all_gradients_equal_sd_scripts(
    tmp_path: Path, tiny_base: BaseFile, changes: dict[str, Any]
) -> None:
    session = open_on(tmp_path, tiny_base, changes)
    batch = next(
        each for each in epoch_batches(session.images, session.settings.dataset, seed=1, epoch=1) if 0 in each.images
    )
    theirs = ask_sd_scripts(tmp_path, session, batch, tiny_base)
    loss = session.backward(batch, 0).item()
    assert loss == pytest.approx(theirs.pop("loss").item(), rel=1e-5)
    assert len(theirs) == 528 - 2 * 6 * (changes.get("clip_skip", 1) - 1)  # skipped layers have no gradient
    worst = 0.0
    ours = session.adapter.gradients()
    assert ours.keys() == theirs.keys()
    for name, reference in theirs.items():
        assert reference.norm() > 0
        assert ours[name].shape == reference.shape
        worst = max(worst, ((ours[name] - reference).norm() / reference.norm()).item())
    assert worst < 1e-4
    print(f"largest relative difference of a gradient: {worst:.2g}")


def test_both_engines_leave_the_same_files_but_for_the_weights(tmp_path: Path, tiny_base: BaseFile) -> None:
    found = {}
    for name, engine in (("native", NativeEngine("cpu")), ("kohya", KohyaEngine(TINY_TRAINER))):
        run = RunPaths(tmp_path / name)
        make_run(run.root)
        spec = StyleSpec.model_validate(SPEC)
        write_atomic(run.dataset_toml, toml_text(render_dataset(spec, 1)))
        write_atomic(run.training_toml, toml_text(render_training(spec)))
        settings = settings_of(run)
        length = plan_length(read_training_set(settings).plan, settings.dataset, settings.training)
        tokenizer = tokenizer_dir(tiny_base)
        out = run.root / "weights"
        job = TrainJob(spec, run, tiny_base, tokenizer, out, length.steps, length.batches_per_epoch)
        trained = engine.train(job, lambda *_, **__: None)
        found[name] = {path.name: read_file(path) for path in sorted(out.glob("*.safetensors"))}
        assert (trained.steps, trained.epochs, trained.modules) == (6, 3, 264)
    assert (
        list(found["native"])
        == list(found["kohya"])
        == ["cartoon-000001.safetensors", "cartoon-000002.safetensors", "cartoon.safetensors"]
    )
    for name, (shapes, metadata) in found["native"].items():
        their_shapes, theirs = found["kohya"][name]
        assert shapes == their_shapes
        assert metadata.keys() - theirs.keys() == set()
        assert theirs.keys() - metadata.keys() <= NOT_WRITTEN.keys()
        shared = metadata.keys() - OF_THIS_RUN.keys()
        assert len(shared) >= 70
        ours = {key: unpacked(metadata[key]) for key in shared}
        assert {key: unpacked(theirs[key]) for key in shared} == ours


def read_file(path: Path) -> tuple[dict[str, tuple[list[int], torch.dtype]], dict[str, str]]:
    """Shape and dtype of each tensor; the metadata."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    return {name: (list(tensor.shape), tensor.dtype) for name, tensor in load_file(path).items()}, metadata


def unpacked(value: str) -> Any:
    """JSON values as such."""
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value
