"""Styles that see different layers of the text encoder in one pass: each one's result is as if it had been alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_native_interrupted import check_every_pass, open_styles
from test_native_packed import difference, float64, make_styles, open_acting  # noqa: F401 - a fixture

from brushset.native.dataset import epoch_batches
from brushset.native.loop import run_together
from brushset.native.optim import shared_settings
from brushset.native.session import Session, Style
from brushset.native.state import read_state, save_state
from brushset.records import BaseFile

RATES: dict[str, Any] = {"unet_lr": 3e-4, "text_encoder_lr": [3e-4], "optimizer_args": ["weight_decay=0.2"]}
STYLES: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
    ({}, {**RATES, "seed": 1, "max_train_epochs": 7}),
    ({"caption_dropout_rate": 0.2}, {**RATES, "seed": 2, "max_train_epochs": 10, "clip_skip": 2}),
)  # fmt: skip
"""20 steps each and more. See test_native_packed_mixed about the rates."""


def first_draws(sessions: list[Session]) -> dict[int, Any]:
    draws = {}
    for session in sessions:
        batches = epoch_batches(session.images, session.settings.dataset, seed=1, epoch=1)
        draws[session.row] = session.draw(next(batch for batch in batches if len(batch.images) == 2), 0)
    return draws


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("unet_only", "shuffled"), [(False, True), (True, False), (True, True)])
def test_gradients_are_those_of_training_each_at_its_own_clip_skip(
    tmp_path: Path, tiny_base: BaseFile, unet_only: bool, shuffled: bool
) -> None:
    """Shuffled captions of two epochs are encoded as they come, also by an encoder that is not trained."""
    more = {"network_train_unet_only": unet_only, "max_train_epochs": 1}
    dataset = {"shuffle_caption": shuffled, "keep_tokens": 0}
    changes = [({**dataset}, {**training, **more}) for _, training in STYLES]
    changes.append(({}, {**STYLES[0][1], **more, "seed": 3, "clip_skip": 12}))
    styles = make_styles(tmp_path, tiny_base, changes)
    together = open_acting(styles, tiny_base)
    together[0].pack.add_gradients(draws := first_draws(together))
    live = [not draw.text.is_cached for draw in draws.values()]
    assert live == ([shuffled, shuffled, False] if unet_only else [True] * 3)
    for session, style in zip(together, styles, strict=True):
        (alone,) = open_acting([style], tiny_base)
        alone.pack.add_gradients(first_draws([alone]))
        found, expected = session.adapter.gradients(), alone.adapter.gradients()
        unreached = found.keys() - expected.keys()
        assert len(unreached) == (0 if unet_only else 12 * (session.clip_skip - 1))
        assert all(not found[name].any() for name in unreached)
        for name, value in expected.items():  # at 64 px the mid block has one cell: its q and k have no gradient
            assert (found[name] - value).norm() <= 1e-9 * value.norm() + 1e-15, name
        ours, theirs = session.pack.flat.gradients[session.row], alone.pack.flat.gradients[0]
        assert difference(ours, theirs) < 1e-9  # the same places, whatever is reached
        print(f"clip_skip {session.clip_skip}: relative difference of the gradients {difference(ours, theirs):.1e}")


@pytest.mark.usefixtures("float64")
def test_weights_with_cached_captions_are_those_of_training_each_alone(tmp_path: Path, tiny_base: BaseFile) -> None:
    """With an encoder that is trained: tests/test_native_packed.py, whose styles differ in clip_skip too."""
    changes = [(keys, {**training, "network_train_unet_only": True}) for keys, training in STYLES]
    styles = make_styles(tmp_path, tiny_base, changes)
    assert [style.length.steps for style in styles] == [21, 20]
    together = open_acting(styles, tiny_base)
    passes: list[int] = []
    add = together[0].pack.add_gradients
    together[0].pack.add_gradients = lambda draws: (passes.append(len(draws)), add(draws))[1]  # type: ignore[method-assign]
    start = together[0].pack.flat.master.clone()
    list(run_together(together))
    assert passes.count(2) >= 7
    for session, style in zip(together, styles, strict=True):
        (alone,) = open_acting([style], tiny_base)
        list(run_together([alone]))
        found = difference(session.pack.flat.master[session.row], alone.pack.flat.master[0])
        moved = difference(session.pack.flat.master[session.row], start[session.row])
        print(f"clip_skip {session.clip_skip}: {style.length.steps} steps, weights {found:.1e}, moved by {moved:.1e}")
        assert found < 1e-8
        assert moved > 1e-3


def test_layers_that_are_not_seen_stay_as_they_were(tmp_path: Path, tiny_base: BaseFile) -> None:
    """sd-scripts' optimizers pass over what has no gradient, weight decay included."""
    changes = [({}, {**training, "max_train_epochs": 1}) for _, training in STYLES]
    sessions = open_acting(make_styles(tmp_path, tiny_base, changes), tiny_base, dtype=torch.float32)
    start = [session.adapter.state(None) for session in sessions]
    list(run_together(sessions))
    for session, before in zip(sessions, start, strict=True):
        after = session.adapter.state(None)
        same = {name for name in after if torch.equal(after[name], before[name]) and not name.endswith(".alpha")}
        unseen = {name for name in after if "_layers_11_" in name and not name.endswith(".alpha")}
        assert len(unseen) == 12
        assert same & {name for name in after if "lora_te" in name} == (unseen if session.clip_skip == 2 else set())


def test_from_every_pass_on_they_end_with_the_same_bits(tmp_path: Path, tiny_base: BaseFile) -> None:
    changes = [{"network_train_unet_only": None, "max_train_epochs": 1, "seed": skip, "clip_skip": skip}
               for skip in (1, 2)]  # fmt: skip
    check_every_pass(open_styles(tmp_path, tiny_base, changes), tmp_path / "states", passes=3)


def test_a_state_of_a_pack_goes_on_alone(tmp_path: Path, tiny_base: BaseFile) -> None:
    """Ranks are filled up and layers left out, both at once."""
    changes = [({}, {**STYLES[0][1], "max_train_epochs": 1, "network_dim": 8}),
               ({}, {**STYLES[1][1], "max_train_epochs": 2, "network_dim": 2})]  # fmt: skip
    styles = make_styles(tmp_path, tiny_base, changes)
    together = open_acting(styles, tiny_base, dtype=torch.float32)
    list(run_together(together))
    save_state(tmp_path / "state", together[1], of="x", told={}, beside={})
    (alone,) = open_acting(styles[1:], tiny_base, dtype=torch.float32)
    read_state(tmp_path / "state", of="x").restore(alone)
    found, expected = alone.adapter.state(None), together[1].adapter.state(None)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    (ours, theirs) = (list(each.optimizer.state_dict()["state"].values()) for each in (alone, together[1]))
    flat, other = alone.pack.flat, together[1].pack.flat
    for group, our, their in zip(alone.groups, ours, theirs, strict=True):
        for key in ("exp_avg", "exp_avg_sq"):
            assert our[key].any()
            assert torch.equal(flat.strip(0, our[key], group), other.strip(1, their[key], group))


def test_clip_skip_parts_no_pack(tmp_path: Path, tiny_base: BaseFile) -> None:
    styles: list[Style] = make_styles(tmp_path, tiny_base, STYLES)
    first, second = (shared_settings(style.settings.training) for style in styles)
    assert first == second
