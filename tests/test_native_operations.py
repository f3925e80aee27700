"""A step stays short: how many operations it starts, and that it never waits for the device. Counts hold at any width."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from native_case import make_run, settings_of

from bench.operations import Operations
from brushset.bases.load import load_components
from brushset.native.dataset import epoch_batches, plan_length, read_training_set
from brushset.native.latents import encode_images
from brushset.native.session import Session, Style, open_pack
from brushset.records import BaseFile


def open_styles(root: Path, base: BaseFile, count: int, **changes: Any) -> list[Session]:
    vae = load_components(base, parts=("vae",)).vae
    styles = []
    for number in range(count):
        settings = settings_of(make_run(root / str(number), {"resolution": 128}, {"seed": number, **changes}))
        images = read_training_set(settings)
        length = plan_length(images.plan, settings.dataset, settings.training)
        styles.append(Style(settings, images, length, encode_images(images, vae, settings, lambda *_: None)))
    return open_pack(styles, load_components(base, parts=("unet", "text_encoder", "tokenizer")))


def count_step(sessions: list[Session]) -> Operations:
    """One whole step of all styles, from the draws to the updated weights, after one that warms up."""
    for number in range(2):
        with Operations() as counted:
            draws = {}
            for session in sessions:
                batches = epoch_batches(session.images, session.settings.dataset, seed=1, epoch=1)
                batch = next(batch for batch in batches if len(batch.images) == 2)
                draws[session.row] = session.draw(batch, number)
            sessions[0].pack.add_gradients(draws)
            for session in sessions:
                session.set_rates()
            sessions[0].pack.update([each.row for each in sessions], [each.optimizer for each in sessions])
    return counted


@pytest.mark.parametrize(
    ("styles", "unet_only", "most"),
    [(1, True, 2700), (3, True, 3 * 900), (1, False, 4100), (3, False, 3 * 1400)],
)
def test_a_step_starts_few_operations_and_awaits_none(
    tmp_path: Path, tiny_base: BaseFile, styles: int, unet_only: bool, most: int
) -> None:
    counted = count_step(open_styles(tmp_path, tiny_base, styles, network_train_unet_only=unet_only))
    print(f"{styles} styles, {'UNet alone' if unet_only else 'with text encoder'}: {counted.total} operations, "
          f"{counted.views.total()} views; {counted.started.most_common(14)}")  # fmt: skip
    assert counted.started["addmm" if styles == 1 else "baddbmm"] > 190  # it is the real step that is counted
    assert counted.total <= most
    assert counted.synchronising == 0


def test_the_counter_counts_what_waits() -> None:
    with Operations() as counted:
        x = torch.ones(4).view(2, 2)
        assert float((x @ x).sum()) == 8.0
    assert counted.synchronising == 1
    assert counted.started["mm"] == 1
    assert counted.views["view"] == 1


def test_before_the_first_lora_there_is_no_gradient(tmp_path: Path, tiny_base: BaseFile) -> None:
    (session,) = open_styles(tmp_path, tiny_base, 1, network_train_unet_only=True)
    seen: dict[str, bool] = {}
    unet = session.pack.unet
    for name in ("conv_in", "down_blocks.0.resnets.0", "down_blocks.0.attentions.0.norm", "down_blocks.0.attentions.0"):
        unet.get_submodule(name).register_forward_hook(
            lambda _module, _given, made, name=name: seen.__setitem__(
                name, (made[0] if isinstance(made, tuple) else made).requires_grad
            )
        )
    count_step([session])
    assert list(seen.values()) == [False, False, False, True]
