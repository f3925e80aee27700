"""Interrupted after any pass, a training goes on to the same bits: every optimizer, and packs of styles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from native_case import make_run, settings_of

from brushset.bases.load import load_components
from brushset.native.dataset import plan_length, read_heldout, read_training_set
from brushset.native.heldout import encode_heldout
from brushset.native.latents import encode_images
from brushset.native.loop import Update, run_together
from brushset.native.session import Session, Style, open_pack
from brushset.native.state import read_state, save_state
from brushset.native.validation import measure
from brushset.records import BaseFile

DATASET: dict[str, Any] = {"num_repeats": 2, "caption_dropout_rate": 0.3, "shuffle_caption": True, "flip_aug": True}
TRAINING: dict[str, Any] = {
    "network_train_unet_only": True,
    "gradient_accumulation_steps": 2,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 1,
    "max_train_epochs": 2,
    "noise_offset": 0.05,
    "validate_every_n_epochs": 1,
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    """Sums over several threads need not come out alike."""
    torch.set_num_threads(1)


def open_styles(root: Path, base: BaseFile, changes: Sequence[dict[str, Any]]) -> list[Session]:
    """Sessions of one pack, each with held-out images."""
    vae, styles = load_components(base, parts=("vae",)).vae, []
    for number, training in enumerate(changes):
        run = make_run(root / str(number), DATASET, {**TRAINING, **training}, heldout=2)
        settings = settings_of(run)
        images, aside = read_training_set(settings), read_heldout(settings)
        assert aside is not None
        length = plan_length(images.plan, settings.dataset, settings.training)
        latents = encode_images(images, vae, settings, lambda *_: None)
        styles.append(Style(settings, images, length, latents, encode_heldout(aside, vae, settings)))
    return open_pack(styles, load_components(base, parts=("unet", "text_encoder", "tokenizer")))


def train(sessions: Sequence[Session], saved: Path | None) -> tuple[list[tuple[int, Update]], torch.Tensor]:
    """Every update with its style, and all weights at the end; a state of each style after each pass, below `saved`."""
    told, passes = [], 0

    def save() -> None:
        nonlocal passes
        if saved is None:
            return
        for session in sessions:
            save_state(saved / f"{passes}-{session.row}", session, of="this", told={}, beside={})
        passes += 1

    for session, update in run_together(sessions, at_rest=save):
        assert isinstance(update, Update)
        told.append((session.row, update))
        if update.ends_epoch:  # what is looked at in between changes nothing
            assert session.heldout is not None
            measure(session, session.heldout)
    return told, sessions[0].pack.flat.master.clone()


def check_every_pass(sessions: Sequence[Session], folder: Path, *, passes: int) -> None:
    """Goes on from each state, and compares with the run that left them."""
    told, weights = train(sessions, folder)
    assert len(list(folder.iterdir())) == passes * len(sessions)
    steps = {session.row: session.length.steps for session in sessions}
    for number in range(passes):
        states = [read_state(folder / f"{number}-{session.row}", of="this") for session in sessions]
        for session, state in zip(sessions, states, strict=True):
            session.pack.flat.master[session.row].fill_(9.0)
            state.restore(session)
        done = {session.row: session.step for session in sessions}
        assert any(done[row] < steps[row] for row in done) or number == passes - 1
        again, found = train(sessions, None)
        assert again == [(row, update) for row, update in told if update.step > done[row]]
        assert torch.equal(found, weights), f"after pass {number}"


@pytest.mark.parametrize("optimizer", ["AdamW", "AdamW8bit", "Lion", "Prodigy"])
def test_from_every_pass_on_it_ends_with_the_same_bits(tmp_path: Path, tiny_base: BaseFile, optimizer: str) -> None:
    rate = 1.0 if optimizer == "Prodigy" else 1e-3
    changes = {"optimizer_type": optimizer, "unet_lr": rate}
    check_every_pass(open_styles(tmp_path, tiny_base, [changes]), tmp_path / "states", passes=6)


def test_the_text_encoders_adapter_goes_on_as_well(tmp_path: Path, tiny_base: BaseFile) -> None:
    changes = {"network_train_unet_only": None, "max_train_epochs": 1}
    check_every_pass(open_styles(tmp_path, tiny_base, [changes]), tmp_path / "states", passes=3)


def test_styles_of_a_pack_go_on_in_the_same_passes_and_after_one_has_ended(tmp_path: Path, tiny_base: BaseFile) -> None:
    changes = [{"seed": 1, "max_train_epochs": 1}, {"seed": 2, "gradient_accumulation_steps": None}]
    sessions = open_styles(tmp_path, tiny_base, changes)
    check_every_pass(sessions, tmp_path / "states", passes=6)
