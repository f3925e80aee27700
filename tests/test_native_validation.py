"""Validation on held-out images: what it measures, when, what follows from it, and that nothing of it is trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from native_case import make_run, settings_of
from safetensors import safe_open
from safetensors.torch import load_file

from brushset.bases.load import load_components
from brushset.engines.native import NativeEngine
from brushset.native.dataset import derive_seed, plan_length, read_heldout, read_training_set
from brushset.native.heldout import Heldout, encode_heldout
from brushset.native.latents import encode_images
from brushset.native.loop import run_together
from brushset.native.noise import draw_noise
from brushset.native.session import Session, Style, open_pack
from brushset.native.settings import NativeSettings
from brushset.native.validation import Measured, measure, measured_timesteps
from brushset.patience import Choice, choose_epoch
from brushset.protocols import TrainJob
from brushset.records import BaseFile, Trained
from brushset.spec import StyleSpec
from brushset.stages.train import verify_trained

RECIPE: dict[str, Any] = {
    "network_train_unet_only": True,
    "validate_every_n_epochs": 1,
    "max_train_epochs": 2,
    "save_every_n_epochs": 2,
}


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory, tiny_base: BaseFile) -> Session:
    settings = settings_of(make_run(tmp_path_factory.mktemp("run"), {}, RECIPE, heldout=2))
    models = load_components(tiny_base)
    images, aside = read_training_set(settings), read_heldout(settings)
    assert aside is not None
    latents = encode_images(images, models.vae, settings, lambda *_: None)
    length = plan_length(images.plan, settings.dataset, settings.training)
    style = Style(settings, images, length, latents, encode_heldout(aside, models.vae, settings))
    return open_pack([style], models)[0]


def test_heldout_images_are_measured_and_never_trained_on(session: Session) -> None:
    assert session.heldout is not None
    held = {image.path for image in session.heldout.images.images}
    assert {path.name for path in held} == {"3.png", "4.png"}
    assert not held & {image.path for image in session.images.images}
    assert not {path.name for path in held} & {image.path.name for image in session.images.images}


def test_the_loss_is_the_training_loss_at_four_timesteps(session: Session) -> None:
    """By hand: each image at each timestep, with its own noise and min-SNR weight, one at a time."""
    heldout, pack = session.heldout, session.pack
    assert heldout is not None
    steps = measured_timesteps(session.settings)
    assert steps == [200, 400, 600, 800]
    losses = []
    for image in range(2):
        for step in steps:
            generator = torch.Generator().manual_seed(derive_seed(7, f"validation {step}", image))
            noise = draw_noise((1, 4, 8, 8), generator, session.settings.training).noise
            mean = heldout.latents.mean[64, 64][image, 0][None]
            share = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)[step]
            noisy = share.sqrt() * mean + (1 - share).sqrt() * noise
            states = session.text.encode([(f"cartoonstyle, a cat, part {image + 3}", 1)])
            with torch.no_grad():
                keys = None if pack.text_product is None else {"text": pack.text_product(states)}
                told = pack.unet(noisy, torch.tensor([step]), states, cross_attention_kwargs=keys).sample
            ratio = share / (1 - share)
            losses.append(((told - noise) ** 2).mean() * min(1.0, 5.0 / ratio))
    assert measure(session, heldout).heldout == pytest.approx(float(sum(losses)) / 8, rel=1e-5)


def test_the_same_weights_measure_the_same_and_training_is_not_touched(session: Session) -> None:
    assert session.heldout is not None
    first, before = measure(session, session.heldout), session.pack.flat.master.clone()
    torch.manual_seed(0)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert measure(session, session.heldout) == first
    assert torch.equal(torch.rand(1), drawn)
    assert torch.equal(session.pack.flat.master, before)
    assert session.pack.flat.gradients.count_nonzero() == 0
    list(run_together([session]))
    after = measure(session, session.heldout)
    assert after.heldout != first.heldout
    assert after.trained != first.trained


def job_for(root: Path, base: BaseFile, *, patience: int, state_minutes: float = 0.0, **recipe: Any) -> TrainJob:
    run = make_run(root, {}, {**RECIPE, **recipe}, heldout=2)
    settings: NativeSettings = settings_of(run)
    length = plan_length(read_training_set(settings).plan, settings.dataset, settings.training)
    train = {
        "engine": "native", "train_text_encoder": False, "validate_every_n_epochs": 1, "early_stop_patience": patience,
        "save_state_minutes": state_minutes, "network_dim": 4, "network_alpha": 2.0, "batch_size": 2, "repeats": 1,
        "epochs": settings.training.max_train_epochs, "save_every_n_epochs": settings.training.save_every_n_epochs,
        "save_precision": "float",
    }  # fmt: skip
    spec = StyleSpec.model_validate(
        {"name": "cartoon", "trigger": "t", "dataset": {"resolution": 64, "holdout": 0.3}, "train":
         {**train, "min_bucket_reso": 64, "max_bucket_reso": 128}}
    )  # fmt: skip
    out, length_of = root / "out", (length.steps, length.batches_per_epoch)
    return TrainJob(spec, run, base, Path(), out, *length_of, buckets={"64x64": 3}, attempts_dir=root / "kept")


class Heard:
    """Keeps what it is told; ends the training where it is told of this event for this epoch."""

    def __init__(self, stop_at: tuple[str, int] | None = None) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._stop_at = stop_at

    def __call__(self, event: str, /, **fields: object) -> None:
        self.events.append((event, fields))
        if (event, fields.get("epoch") or fields.get("step")) == self._stop_at:
            raise KeyboardInterrupt


def epoch_of(path: Path) -> tuple[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()["ss_epoch"], file.metadata()["ss_steps"]


@pytest.fixture
def worsens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A curve that turns after the second epoch: of random images the measured one need not."""
    curve = [3.0, 2.0, 2.5, 2.25]

    def measure(session: Session, _: Heldout) -> Measured:
        return Measured(curve[session.step // 2 - 1], 1.0)

    monkeypatch.setattr("brushset.native.validation.measure", measure)


@pytest.mark.usefixtures("worsens")
def test_training_that_gets_worse_is_stopped_and_the_best_epoch_published(tmp_path: Path, tiny_base: BaseFile) -> None:
    job = job_for(tmp_path, tiny_base, patience=2, max_train_epochs=9)
    heard = Heard()
    trained = NativeEngine("cpu").train(job, heard)
    assert choose_epoch(trained.validation, 2) == Choice(best_epoch=2, stop_epoch=4)
    assert (trained.epochs, trained.best_epoch) == (4, 2)
    assert trained.stopped_early.startswith("the validation loss")
    assert trained.steps == 2 * trained.epochs == trained.losses[-1].step
    told = [
        (fields["epoch"], fields["loss"], fields["train_loss"])
        for event, fields in heard.events
        if event == "validation"
    ]
    assert told == [(point.epoch, point.loss, point.train_loss) for point in trained.validation]
    assert [epoch for epoch, _, _ in told] == list(range(1, trained.epochs + 1))
    assert epoch_of(job.output_dir / trained.weights) == ("2", "4")
    assert trained.checkpoints[-1].epoch == trained.epochs
    verify_trained(job, trained)


def test_without_patience_the_last_epoch_is_published(tmp_path: Path, tiny_base: BaseFile) -> None:
    job = job_for(tmp_path, tiny_base, patience=0)
    trained = NativeEngine("cpu").train(job, Heard())
    assert (trained.epochs, trained.best_epoch, trained.stopped_early) == (2, None, "")
    assert len(trained.validation) == 2
    assert epoch_of(job.output_dir / trained.weights) == ("2", "4")
    verify_trained(job, trained)


def train_interrupted(job: TrainJob, stop_at: tuple[str, int]) -> Trained:
    """Interrupted there, and gone on with."""
    with pytest.raises(KeyboardInterrupt):
        NativeEngine("cpu").train(replace(job, output_dir=job.output_dir.with_name("first")), Heard(stop_at))
    heard = Heard()
    trained = NativeEngine("cpu").train(job, heard)
    assert any(event == "note" and "goes on from step" in str(fields["text"]) for event, fields in heard.events)
    return trained


@pytest.mark.usefixtures("worsens")
def test_interrupted_between_validations_it_chooses_the_same_epoch(tmp_path: Path, tiny_base: BaseFile) -> None:
    whole_job = job_for(tmp_path / "a", tiny_base, patience=2, max_train_epochs=9)
    whole = NativeEngine("cpu").train(whole_job, Heard())
    for number, stop_at in enumerate([("validation", whole.epochs - 1), ("train_step", whole.steps)]):
        job = job_for(tmp_path / str(number), tiny_base, patience=2, state_minutes=1e-9, max_train_epochs=9)
        trained = train_interrupted(job, stop_at)
        assert trained.validation == whole.validation
        assert (trained.best_epoch, trained.stopped_early) == (whole.best_epoch, whole.stopped_early)
        assert trained.losses == whole.losses
        assert [c.epoch for c in trained.checkpoints] == [c.epoch for c in whole.checkpoints]
        for name in (trained.weights, *(c.path for c in trained.checkpoints)):
            ours, theirs = load_file(job.output_dir / name), load_file(whole_job.output_dir / name)
            assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
        verify_trained(job, trained)
