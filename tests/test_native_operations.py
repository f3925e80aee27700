"""A step stays short: how many operations it starts, and that it never waits for the device. Counts hold at any width."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from native_case import make_run, settings_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.operations import Operations
from brushset.bases.load import load_components
from brushset.native.dataset import Batch, epoch_batches, plan_length, read_training_set
from brushset.native.latents import encode_images
from brushset.native.session import Session, Style, open_pack
from brushset.records import BaseFile


def open_styles(
    root: Path, base: BaseFile, count: int, dataset: dict[str, Any] | None = None, device: str = "cpu", **changes: Any
) -> list[Session]:
    """Sessions of one pack; a change that is a tuple has a value for each style."""
    vae = load_components(base, parts=("vae",)).vae
    styles = []
    for number in range(count):
        own = {key: value[number] if isinstance(value, tuple) else value for key, value in changes.items()}
        settings = settings_of(
            make_run(root / str(number), {"resolution": 128, **(dataset or {})}, {"seed": number, **own})
        )
        images = read_training_set(settings)
        length = plan_length(images.plan, settings.dataset, settings.training)
        styles.append(Style(settings, images, length, encode_images(images, vae, settings, lambda *_: None)))
    models = load_components(base, parts=("unet", "text_encoder", "tokenizer"))
    models.unet.to(device)
    models.text_encoder.to(device)
    return open_pack(styles, models)


def batch_of_two(session: Session) -> Batch:
    batches = epoch_batches(session.images, session.settings.dataset, seed=1, epoch=1)
    return next(batch for batch in batches if len(batch.images) == 2)


def count_step(sessions: list[Session]) -> Operations:
    """One whole step of all styles, from the draws to the updated weights, after one that warms up."""
    for number in range(2):
        with Operations() as counted:
            draws = {}
            for session in sessions:
                draws[session.row] = session.draw(batch_of_two(session), number)
            sessions[0].pack.add_gradients(draws)
            for session in sessions:
                session.set_rates()
            sessions[0].pack.update([each.row for each in sessions], [each.optimizer for each in sessions])
    return counted


@pytest.mark.parametrize(
    ("styles", "unet_only", "clip_skip", "most"),
    [(1, True, None, 2100), (3, True, (1, 2, 1), 3 * 705), (1, False, None, 2750), (3, False, None, 3 * 925),
     (3, False, (1, 2, 1), 3 * 930)],
)  # fmt: skip
def test_a_step_starts_few_operations_and_awaits_none(
    tmp_path: Path, tiny_base: BaseFile, styles: int, unet_only: bool, clip_skip: Any, most: int
) -> None:
    counted = count_step(
        open_styles(tmp_path, tiny_base, styles, network_train_unet_only=unet_only, clip_skip=clip_skip)
    )
    print(f"{styles} styles, {'UNet alone' if unet_only else 'with text encoder'}: {counted.total} operations, "
          f"{counted.views.total()} views; {counted.started.most_common(14)}")  # fmt: skip
    assert counted.started["baddbmm_"] > 3 * 192  # it is the real step that is counted
    assert counted.total <= most
    assert counted.synchronising == 0
    assert counted.started["clone"] <= 2 + styles  # activations are not copied from one layout to another
    several = 16 if unet_only else 16 + 12 + 1  # q, k and v; keys and values of the text: their gradients
    assert counted.started["cat"] <= 12 + several + 5 * (styles > 1)  # 12 skip connections


@pytest.mark.parametrize(
    ("dataset", "training"),
    [
        ({"caption_dropout_rate": 0.5, "flip_aug": True, "shuffle_caption": True},
         {"noise_offset": 0.1, "min_snr_gamma": 5.0, "gradient_accumulation_steps": 2, "cache_latents": False,
          "clip_skip": (1, 2)}),
        ({}, {"loss_type": "huber", "ip_noise_gamma": 0.1, "gradient_checkpointing": True, "max_token_length": 150}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("unet_only", [True, False])
def test_no_setting_makes_a_step_wait_or_cross(
    tmp_path: Path, tiny_base: BaseFile, unet_only: bool, dataset: dict[str, Any], training: dict[str, Any]
) -> None:
    """On torch's meta device nothing can be read, and what crosses from the CPU is seen: it would end a capture."""
    sessions = open_styles(tmp_path, tiny_base, 2, dataset, network_train_unet_only=unet_only, **training)
    assert count_step(sessions).synchronising == 0
    draws = {session.row: session.draw(batch_of_two(session), 0) for session in sessions}
    given = {name: tensor.to("meta") for name, tensor in sessions[0].pack._upload(draws).items()}
    del sessions
    training = {**training, "optimizer_args": ["foreach=True"]}  # the fused one has no meta kernel
    sessions = open_styles(tmp_path, tiny_base, 2, dataset, "meta", network_train_unet_only=unet_only, **training)
    pack, bucket = sessions[0].pack, next(iter(draws.values())).bucket
    pack.route([0, 1])
    pack._forward_backward(bucket, given)  # makes tables, once
    with Crossings() as crossings:
        losses = pack._forward_backward(bucket, given)
    assert losses.device.type == "meta"
    assert crossings.operations > 1000
    assert crossings.found == []


class Crossings(TorchDispatchMode):
    """Notes operations that read from the CPU and write to the device, or the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.operations = 0

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tensors = [each for each in tree_leaves((args, made)) if isinstance(each, torch.Tensor) and each.dim()]
        self.operations += 1
        if len({each.device.type for each in tensors}) > 1:
            self.found.append(str(func))
        return made


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
