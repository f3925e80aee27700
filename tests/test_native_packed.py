"""Several styles in one pass: each one's result is as if it had been trained alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from native_case import make_run, settings_of

from brushset.bases.load import load_components
from brushset.errors import TrainerFailed
from brushset.native.dataset import epoch_batches, plan_length, read_training_set
from brushset.native.latents import encode_images
from brushset.native.loop import Update, run_together
from brushset.native.session import Session, Style, open_pack
from brushset.records import BaseFile

RECIPES: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
    ({"caption_dropout_rate": 0.3}, {"seed": 1, "max_train_epochs": 8, "lr_scheduler": "cosine", "lr_warmup_steps": 3}),
    ({"flip_aug": True}, {"seed": 2, "max_train_epochs": 7, "unet_lr": 4e-4, "max_grad_norm": 0.01, "clip_skip": 2}),
    ({"num_repeats": 2}, {"seed": 3, "max_train_epochs": 8, "gradient_accumulation_steps": 2, "min_snr_gamma": None,
                          "clip_skip": 1, "optimizer_args": ["weight_decay=0.2"]}),
)  # fmt: skip
"""Three styles that differ in all that styles of one pack may differ in."""


@pytest.fixture
def float64() -> Iterator[None]:
    """transformers makes its masks in the default precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make_styles(root: Path, base: BaseFile, changes: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> list[Style]:
    vae = load_components(base, parts=("vae",)).vae
    styles = []
    for number, (dataset, training) in enumerate(changes):
        run = make_run(root / str(number), dataset, training)
        for image in range(number):  # sets of different sizes
            (run.images / f"{image}.png").unlink()
        settings = settings_of(run)
        images = read_training_set(settings)
        length = plan_length(images.plan, settings.dataset, settings.training)
        styles.append(Style(settings, images, length, encode_images(images, vae, settings, lambda *_: None)))
    return styles


def open_acting(styles: Sequence[Style], base: BaseFile, *, dtype: torch.dtype = torch.float64) -> list[Session]:
    """Sessions whose adapters act already, so that every gradient is there; a style's weights depend on its seed alone."""
    sessions = open_pack(styles, load_components(base, parts=("unet", "text_encoder", "tokenizer"), dtype=dtype))
    for session in sessions:
        generator = torch.Generator().manual_seed(session.settings.training.seed)
        for layer in session.adapter.layers.values():
            drawn = 0.02 * torch.randn(layer.up.shape[1:], generator=generator, dtype=torch.float64)
            layer.up_master[session.row].copy_(drawn)
    sessions[0].pack.flat.refresh()
    return sessions


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.usefixtures("float64")
def test_packed_gradients_are_those_of_training_each_alone(tmp_path: Path, tiny_base: BaseFile) -> None:
    changes = tuple((dataset, {**training, "gradient_accumulation_steps": None}) for dataset, training in RECIPES)
    styles = make_styles(tmp_path, tiny_base, changes)
    together = open_acting(styles, tiny_base)
    draws = {}
    for session in together:
        batches = epoch_batches(session.images, session.settings.dataset, seed=1, epoch=1)
        draws[session.row] = session.draw(next(batch for batch in batches if len(batch.images) == 2), 0)
    losses = together[0].pack.add_gradients(draws).tolist()
    for session, style in zip(together, styles, strict=True):
        (alone,) = open_acting([style], tiny_base)
        batches = epoch_batches(alone.images, alone.settings.dataset, seed=1, epoch=1)
        loss = alone.backward(next(batch for batch in batches if len(batch.images) == 2), 0).item()
        assert losses[session.row] == pytest.approx(loss, rel=1e-12)
        found, expected = session.pack.flat.gradients[session.row], alone.pack.flat.gradients[0]
        assert expected.count_nonzero() > 0.9 * expected.numel()
        assert difference(found, expected) < 1e-9
        print(f"style {session.row}: relative difference of the gradients {difference(found, expected):.1e}")


@pytest.mark.usefixtures("float64")
def test_packed_weights_are_those_of_training_each_alone(tmp_path: Path, tiny_base: BaseFile) -> None:
    styles = make_styles(tmp_path, tiny_base, RECIPES)
    together = open_acting(styles, tiny_base)
    started = [session.pack.flat.master[session.row].clone() for session in together]
    told: dict[int, list[Update]] = {0: [], 1: [], 2: []}
    shared = 0
    count = together[0].pack.add_gradients
    passes: list[int] = []
    together[0].pack.add_gradients = lambda draws: (passes.append(len(draws)), count(draws))[1]  # type: ignore[method-assign]
    for session, update in run_together(together, read_every=7):
        assert isinstance(update, Update)
        told[session.row].append(update)
    shared = sum(size > 1 for size in passes)
    assert shared >= 8  # of their batches many went together
    assert sum(passes) == sum(style.length.batches_per_epoch * style.length.epochs for style in styles)
    for session, style in zip(together, styles, strict=True):
        (alone,) = open_acting([style], tiny_base)
        expected = [update for _, update in run_together([alone])]
        assert len(expected) >= 14
        assert [(u.step, u.epoch, u.ends_epoch, u.rates) for u in told[session.row]] == [
            (u.step, u.epoch, u.ends_epoch, u.rates) for u in expected if isinstance(u, Update)
        ]
        losses = [u.loss for u in expected if isinstance(u, Update)]
        assert [u.loss for u in told[session.row]] == pytest.approx(losses, rel=1e-8)
        weights = session.pack.flat.master[session.row]
        start = started[session.row]
        moved = difference(weights - start, alone.pack.flat.master[0] - start)
        assert difference(weights, alone.pack.flat.master[0]) < 1e-8
        assert moved < 1e-6
        print(
            f"style {session.row}: {style.length.steps} steps, weights {difference(weights, alone.pack.flat.master[0]):.1e}, update {moved:.1e}"
        )


def test_a_style_whose_loss_is_nan_ends_alone(tmp_path: Path, tiny_base: BaseFile) -> None:
    styles = make_styles(tmp_path, tiny_base, [({}, {"seed": seed, "max_train_epochs": 1}) for seed in (1, 2)])
    for value in styles[0].latents.mean.values():
        value.fill_(float("nan"))
    sessions = open_acting(styles, tiny_base, dtype=torch.float32)
    told: dict[int, list[Any]] = {0: [], 1: []}
    for session, update in run_together(sessions, read_every=2):
        told[session.row].append(update)
    assert isinstance(told[0][-1], TrainerFailed)
    assert "step 1: the loss is nan" in str(told[0][-1])
    assert [update.step for update in told[1]] == list(range(1, styles[1].length.steps + 1))
    assert torch.isfinite(sessions[1].pack.flat.master[1]).all()


def test_reading_losses_seldom_changes_nothing_but_when_they_are_told(tmp_path: Path, tiny_base: BaseFile) -> None:
    (style,) = make_styles(tmp_path, tiny_base, [({}, {"max_train_epochs": 3, "gradient_accumulation_steps": 2})])
    found = []
    for every in (1, 3, 50):
        (session,) = open_acting([style], tiny_base, dtype=torch.float32)
        updates = [update for _, update in run_together([session], read_every=every)]
        found.append((updates, session.pack.flat.master.clone()))
    for updates, weights in found[1:]:
        assert [replace(u, current=True) for u in updates] == found[0][0]  # type: ignore[type-var]
        assert torch.equal(weights, found[0][1])
    assert [u.current for u in found[2][0]] == [False] * (style.length.steps - 1) + [True]  # type: ignore[union-attr]
