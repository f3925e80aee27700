"""Optimizers and rates: sd-scripts' names, arithmetic and libraries."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from brushset.errors import UsageError
from brushset.native.flat import FlatWeights
from brushset.native.lora import LoraLayer, Shape
from brushset.native.optim import (
    count_updates,
    describe_optimizer,
    make_optimizer,
    make_scheduler,
    parse_arguments,
    plan_rates,
    trained_groups,
)
from brushset.native.product import Routing
from brushset.native.settings import TrainingKeys


def recipe(**changes: Any) -> TrainingKeys:
    keys = {"seed": 1, "output_name": "x", "network_module": "networks.lora", "unet_lr": 1e-2, "text_encoder_lr": 5e-3}
    return TrainingKeys.model_validate({**keys, **changes})


def small_layers() -> dict[str, LoraLayer]:
    made = {}
    for name in ("textencoder", "unet"):
        frozen = nn.Linear(80, 80).requires_grad_(False)
        made[name] = LoraLayer(frozen, [Shape(64, 64, torch.Generator().manual_seed(0))], Routing())
    return made


def optimizer_for(training: TrainingKeys) -> Any:
    layers = small_layers()
    flat = FlatWeights({name: [{name: layers[name]}] for name in trained_groups(training)}, {})
    return make_optimizer({name: flat.parameters(0, name) for name in trained_groups(training)}, training)


def course(training: TrainingKeys, steps: int) -> list[float]:
    """The UNet's rate at each update."""
    optimizer = optimizer_for(training)
    scheduler = make_scheduler(optimizer, training, steps)
    planned = plan_rates(training, steps)
    found = []
    for step in range(steps):
        found.append(scheduler.get_last_lr()[-1])
        assert planned[step] == dict(zip(["textencoder", "unet"], scheduler.get_last_lr(), strict=True))
        optimizer.step()
        scheduler.step()
    return found


def test_groups_come_text_encoder_first_with_their_own_rates() -> None:
    assert list(trained_groups(recipe())) == ["textencoder", "unet"]
    assert [group["lr"] for group in optimizer_for(recipe()).param_groups] == [5e-3, 1e-2]


def test_a_group_of_rate_zero_is_left_out() -> None:
    assert list(trained_groups(recipe(text_encoder_lr=0.0))) == ["unet"]
    assert list(trained_groups(recipe(network_train_unet_only=True))) == ["unet"]
    with pytest.raises(UsageError, match="every learning rate is 0"):
        trained_groups(recipe(text_encoder_lr=0.0, unet_lr=0.0))


def test_cosine_with_a_share_of_warm_up_follows_its_formula() -> None:
    rates = course(recipe(lr_scheduler="cosine", lr_warmup_steps=0.25), 20)
    expected = [step / 5 if step < 5 else 0.5 * (1 + math.cos(math.pi * (step - 5) / 15)) for step in range(20)]
    assert rates == pytest.approx([1e-2 * share for share in expected])


@pytest.mark.parametrize(
    ("changes", "formula"),
    [
        ({"lr_scheduler": "constant"}, lambda _: 1.0),
        ({"lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 4}, lambda step: min(1, step / 4)),
        ({"lr_scheduler": "linear"}, lambda step: 1 - step / 12),
        (
            {"lr_scheduler": "cosine_with_restarts", "lr_scheduler_num_cycles": 2},
            lambda step: 0.5 * (1 + math.cos(math.pi * ((2 * step / 12) % 1))),
        ),
        (
            {"lr_scheduler": "polynomial", "lr_scheduler_power": 2.0, "learning_rate": 1e-2},
            lambda step: ((1e-2 - 1e-7) * (1 - step / 12) ** 2 + 1e-7) / 1e-2,
        ),
    ],
)
def test_every_schedule_follows_its_formula(changes: dict[str, Any], formula: Any) -> None:
    assert course(recipe(**changes), 12) == pytest.approx([1e-2 * formula(step) for step in range(12)])


def test_a_float_warm_up_is_a_share_rounded_down_and_an_int_a_number() -> None:
    assert count_updates(0.05, 59) == 2
    assert count_updates(7, 59) == 7


@pytest.mark.parametrize("name", ["AdamW", "AdamW8bit", "Lion", "Prodigy"])
def test_every_optimizer_lowers_a_simple_loss(name: str) -> None:
    rate = 1.0 if name == "Prodigy" else 1e-2
    training = recipe(optimizer_type=name, unet_lr=rate, text_encoder_lr=rate)
    layers = small_layers()
    flat = FlatWeights({name: [{name: layer}] for name, layer in layers.items()}, {})
    split = name == "AdamW8bit"
    optimizer = make_optimizer({group: flat.parameters(0, group, split=split) for group in layers}, training)
    x = torch.randn(16, 80, generator=torch.Generator().manual_seed(1))
    losses = []
    for _ in range(30):
        loss = sum((layer(x) - layer.frozen(x) - 1).square().mean() for layer in layers.values())
        loss.backward()
        optimizer.step()
        flat.clear(Routing())
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_optimizer_args_are_python_literals() -> None:
    entries = ["weight_decay=0.1", "betas=(0.9, 0.99)", "decouple=True"]
    expected = {"weight_decay": 0.1, "betas": (0.9, 0.99), "decouple": True}
    assert parse_arguments(entries, key="optimizer_args") == expected
    for bad in ("weight_decay", "a=b c", "a="):
        with pytest.raises(UsageError, match=f'entry "{bad}"'):
            parse_arguments([bad], key="optimizer_args")


def test_an_argument_that_the_optimizer_does_not_take_is_refused() -> None:
    with pytest.raises(UsageError, match=r"optimizer_args.*colour"):
        optimizer_for(recipe(optimizer_args=["colour=1"]))


def test_prodigy_refuses_two_rates() -> None:
    with pytest.raises(UsageError, match="one rate for all"):
        optimizer_for(recipe(optimizer_type="Prodigy"))


def test_the_description_is_the_class_and_its_arguments() -> None:
    training = recipe(optimizer_args=["weight_decay=0.1", "eps=1e-6"])
    optimizer = optimizer_for(training)
    assert describe_optimizer(optimizer, training) == "torch.optim.adamw.AdamW(weight_decay=0.1,eps=1e-06)"
    assert optimizer.param_groups[0]["weight_decay"] == 0.1
