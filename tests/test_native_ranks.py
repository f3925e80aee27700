"""Adapters of several ranks in one pack: each one's result is as if it had been trained alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_native_packed import difference, float64, make_styles, open_acting  # noqa: F401 - a fixture

from brushset.native.dataset import epoch_batches
from brushset.native.loop import Update, run_together
from brushset.native.optim import shared_settings
from brushset.native.session import Session, Style
from brushset.native.settings import TrainingKeys
from brushset.native.state import read_state, save_state
from brushset.records import BaseFile

RANKS: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
    ({}, {"seed": 1, "network_dim": 4, "network_alpha": 1.0, "max_train_epochs": 2}),
    ({}, {"seed": 2, "network_dim": 8, "network_alpha": 8.0, "max_train_epochs": 2, "max_grad_norm": 0.01,
          "optimizer_args": ["weight_decay=0.2"]}),
    ({}, {"seed": 3, "network_dim": 2, "network_alpha": 1.0, "max_train_epochs": 2}),
)  # fmt: skip


def act(sessions: list[Session]) -> None:
    """Draws each adapter's B by its seed, at its own rank: `open_acting` fills the padding, too."""
    for session in sessions:
        generator = torch.Generator().manual_seed(session.settings.training.seed)
        for layer in session.adapter.layers.values():
            rank, up = layer.ranks[session.row], layer.up_master[session.row]
            up.zero_()[:, :rank] = 0.02 * torch.randn(up.shape[0], rank, generator=generator, dtype=torch.float64)
    sessions[0].pack.flat.refresh()


def open_each(styles: list[Style], base: BaseFile) -> list[Session]:
    sessions = open_acting(styles, base)
    act(sessions)
    return sessions


@pytest.mark.usefixtures("float64")
def test_gradients_are_those_of_training_each_at_its_own_rank(tmp_path: Path, tiny_base: BaseFile) -> None:
    styles = make_styles(tmp_path, tiny_base, RANKS)
    together = open_each(styles, tiny_base)
    draws = {}
    for session in together:
        batches = epoch_batches(session.images, session.settings.dataset, seed=1, epoch=1)
        draws[session.row] = session.draw(next(batch for batch in batches if len(batch.images) == 2), 0)
    together[0].pack.add_gradients(draws)
    for session, style in zip(together, styles, strict=True):
        (alone,) = open_each([style], tiny_base)
        batches = epoch_batches(alone.images, alone.settings.dataset, seed=1, epoch=1)
        alone.backward(next(batch for batch in batches if len(batch.images) == 2), 0)
        found, expected = session.adapter.gradients(), alone.adapter.gradients()
        assert found.keys() == expected.keys()
        for name, value in expected.items():  # at 64 px the mid block has one cell: its q and k have no gradient
            assert (found[name] - value).norm() <= 1e-9 * value.norm() + 1e-15, name
        flat, row = session.pack.flat, session.row
        own, everything = flat.strip(row, flat.gradients[row]), flat.gradients[row]
        assert own.numel() == alone.pack.flat.gradients.numel()
        assert own.norm().item() == pytest.approx(everything.norm().item(), rel=1e-12)  # nothing in the padding
        assert own.count_nonzero() == everything.count_nonzero()
        assert torch.equal(flat.pad(row, own), everything)


@pytest.mark.usefixtures("float64")
def test_files_and_weights_are_those_of_training_each_at_its_own_rank(tmp_path: Path, tiny_base: BaseFile) -> None:
    styles = make_styles(tmp_path, tiny_base, RANKS)
    together = open_each(styles, tiny_base)
    list(run_together(together))
    for session, style in zip(together, styles, strict=True):
        (alone,) = open_each([style], tiny_base)
        list(run_together([alone]))
        found, expected = session.adapter.state(None), alone.adapter.state(None)
        assert found.keys() == expected.keys()
        assert {name: tensor.shape for name, tensor in found.items()} == {n: t.shape for n, t in expected.items()}
        name = "lora_unet_mid_block_attentions_0_proj_in"
        assert found[f"{name}.lora_down.weight"].shape[0] == style.settings.training.network_dim
        assert found[f"{name}.alpha"] == style.settings.training.network_alpha
        assert all(difference(found[name], expected[name]) < 1e-8 for name in expected)


@pytest.mark.usefixtures("float64")
def test_a_state_of_a_pack_goes_on_alone(tmp_path: Path, tiny_base: BaseFile) -> None:
    """A state holds an adapter at its own rank, whatever the others' were."""
    styles = make_styles(tmp_path, tiny_base, RANKS[:2])
    together = open_each(styles, tiny_base)
    path, total = tmp_path / "state.safetensors", styles[0].length.steps
    together[0].pause = lambda step, *_: step == 4
    for session, told in run_together(together):
        if session.row == 0 and isinstance(told, Update) and told.step == 4:
            save_state(path, session, of="x", told={}, beside={})
    (alone,) = open_each(styles[:1], tiny_base)
    read_state(path, of="x").restore(alone)
    assert alone.step == 4
    assert [told.step for _, told in run_together([alone]) if isinstance(told, Update)] == list(range(5, total + 1))
    expected = together[0].adapter.state(None)
    assert all(difference(tensor, expected[name]) < 1e-8 for name, tensor in alone.adapter.state(None).items())
    (again,) = open_each(styles[1:], tiny_base)
    assert again.pack.flat.master.shape[1] == 2 * alone.pack.flat.master.shape[1]


def test_ranks_and_alphas_part_no_pack_but_of_8_bit_moments() -> None:
    def recipe(**changes: Any) -> TrainingKeys:
        keys = {"seed": 1, "output_name": "x", "network_module": "networks.lora", **changes}
        return TrainingKeys.model_validate(keys)

    one, other = {"network_dim": 4}, {"network_dim": 8, "network_alpha": 3.0}
    assert shared_settings(recipe(**one)) == shared_settings(recipe(**other))
    bits = {"optimizer_type": "AdamW8bit"}
    assert shared_settings(recipe(**one, **bits)) != shared_settings(recipe(**other, **bits))
