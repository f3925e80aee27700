"""The layers that are trained: which, what they add, what they are called."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from brushset.bases.load import Components, load_components
from brushset.errors import EnvironmentProblem
from brushset.native.lora import Adapter, LoraLayer, Shape, attach_adapters
from brushset.native.product import Routing
from brushset.native.settings import TrainingKeys
from brushset.records import BaseFile


def recipe(**changes: Any) -> TrainingKeys:
    keys = {"seed": 1, "output_name": "x", "network_module": "networks.lora", "network_dim": 4, "network_alpha": 2.0}
    return TrainingKeys.model_validate({**keys, **changes})


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def attach_one(unet: Any, text_encoder: Any, training: TrainingKeys, generator: torch.Generator) -> Adapter:
    (adapter,) = attach_adapters(unet, text_encoder, [Shape.of(training, generator)])
    return adapter


def make_layer(frozen: nn.Linear | nn.Conv2d, *, rank: int, alpha: float) -> LoraLayer:
    frozen.requires_grad_(False)
    return LoraLayer(frozen, [Shape(rank, alpha, generator())], Routing())


def golden_names() -> set[str]:
    """The 264 modules of an SD 1.5 LoRA, by the rule that sd-scripts' files follow."""
    places = [f"down_blocks_{block}_attentions_{i}" for block in range(3) for i in range(2)]
    places += ["mid_block_attentions_0"]
    places += [f"up_blocks_{block}_attentions_{i}" for block in range(1, 4) for i in range(3)]
    inner = [f"attn{n}_{part}" for n in (1, 2) for part in ("to_q", "to_k", "to_v", "to_out_0")]
    inner += ["ff_net_0_proj", "ff_net_2"]
    unet = [f"lora_unet_{place}_{end}" for place in places for end in ("proj_in", "proj_out")]
    unet += [f"lora_unet_{place}_transformer_blocks_0_{part}" for place in places for part in inner]
    parts = ["mlp_fc1", "mlp_fc2", *(f"self_attn_{part}_proj" for part in ("q", "k", "v", "out"))]
    return {*unet, *(f"lora_te_text_model_encoder_layers_{n}_{part}" for n in range(12) for part in parts)}


@pytest.fixture
def models(tiny_base: BaseFile) -> Components:
    return load_components(tiny_base, parts=("unet", "text_encoder"))


def test_names_and_shapes_are_those_of_an_sd15_lora(models: Components) -> None:
    adapter = attach_one(models.unet, models.text_encoder, recipe(), generator())
    assert set(adapter.layers) == golden_names()
    assert (len(adapter.unet), len(adapter.text_encoder)) == (192, 72)
    tensors = adapter.state(None)
    assert len(tensors) == 792
    assert all(tensors[f"{name}.alpha"].shape == () and tensors[f"{name}.alpha"] == 2.0 for name in golden_names())
    down = tensors["lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"]
    up = tensors["lora_unet_mid_block_attentions_0_proj_in.lora_up.weight"]
    assert (tuple(down.shape), tuple(up.shape)) == ((4, 64, 1, 1), (64, 4, 1, 1))
    assert tuple(tensors["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"].shape) == (64, 4)


def test_without_the_text_encoder_the_unets_192_are_left(models: Components) -> None:
    adapter = attach_one(models.unet, None, recipe(), generator())
    assert len(adapter.layers) == 192
    assert len(adapter.state(None)) == 576


def test_a_new_adapter_changes_nothing_and_only_it_is_trained(models: Components) -> None:
    torch.manual_seed(0)
    noisy, steps, states = torch.randn(1, 4, 8, 8), torch.tensor([10]), torch.randn(1, 77, 32)
    before = models.unet(noisy, steps, states).sample
    adapter = attach_one(models.unet, None, recipe(), generator())
    assert torch.allclose(models.unet(noisy, steps, states).sample, before, atol=1e-5)
    trained = {id(weight) for layer in adapter.layers.values() for weight in (layer.down, layer.up)}
    assert {id(weight) for weight in models.unet.parameters() if weight.requires_grad} == trained
    assert len(trained) == 384


@pytest.mark.parametrize("frozen", [nn.Linear(6, 5), nn.Conv2d(6, 5, 1)])
def test_the_layer_adds_alpha_over_rank_times_up_down(frozen: nn.Linear | nn.Conv2d) -> None:
    layer = make_layer(frozen, rank=3, alpha=1.5)
    nn.init.normal_(layer.up)
    x = torch.randn(2, 7, 6) if isinstance(frozen, nn.Linear) else torch.randn(2, 6, 4, 4)
    delta = 0.5 * layer.up[0] @ layer.down[0]
    merged = frozen.weight + delta.view_as(frozen.weight)
    expected = (
        nn.functional.linear(x, merged, frozen.bias) if x.dim() == 3 else nn.functional.conv2d(x, merged, frozen.bias)
    )
    assert torch.allclose(layer(x), expected, atol=1e-6)


def test_down_starts_within_its_uniform_bound_and_up_at_zero() -> None:
    layer = make_layer(nn.Linear(100, 10), rank=8, alpha=8)
    assert layer.up.abs().max() == 0
    assert 0.09 < layer.down.abs().max() <= 0.1  # 1 / sqrt(100)


def test_alpha_is_saved_in_the_files_precision() -> None:
    adapter = Adapter({"lora_unet_x": make_layer(nn.Linear(3, 3), rank=2, alpha=1.5)}, {})
    assert {tensor.dtype for tensor in adapter.state(torch.bfloat16).values()} == {torch.bfloat16}
    assert adapter.state(torch.float16)["lora_unet_x.alpha"] == 1.5
    saved = adapter.state(None)["lora_unet_x.lora_up.weight"]
    saved += 1
    assert adapter.unet["lora_unet_x"].up.abs().max() == 0  # a copy


def test_an_alpha_of_zero_means_no_scaling(models: Components) -> None:
    adapter = attach_one(models.unet, None, recipe(network_alpha=0.0), generator())
    assert {scale for layer in adapter.layers.values() for scale in layer.scales} == {1.0}


def test_a_base_of_another_shape_is_refused(models: Components) -> None:
    del models.text_encoder.text_model.encoder.layers[-1]
    with pytest.raises(EnvironmentProblem, match="offers 66 layers for LoRA"):
        attach_one(models.unet, models.text_encoder, recipe(), generator())
