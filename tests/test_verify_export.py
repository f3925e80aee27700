"""The three tables of names and shapes, each against what it is independent of, and what each says of wrong files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lora_files import in_diffusers, in_peft, locon_state, lora_state

from brushset.bases.configs import SD15 as FULL
from brushset.bases.configs import TINY
from brushset.lora.keys import expected_shapes, key_table
from webui_export.verify import a1111, comfyui, invokeai
from webui_export.verify.blocks import NARROW, SD15, Shape, Widths

FACTS = Path(__file__).resolve().parents[2] / "shared" / "facts"
TABLES = {"A1111": a1111.apply, "ComfyUI": comfyui.apply, "InvokeAI": invokeai.apply}
WIDTHS = {"full": (FULL, SD15), "narrow": (TINY, NARROW)}
ALL = pytest.mark.parametrize("apply", TABLES.values(), ids=list(TABLES))


def shapes_of(state: dict[str, object]) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}  # type: ignore[attr-defined]


@ALL
@pytest.mark.parametrize("widths", list(WIDTHS))
def test_each_table_knows_every_layer_that_the_models_own_tree_has(apply, widths: str) -> None:
    architecture, ours = WIDTHS[widths]
    shapes: dict[str, Shape] = {}
    for module in key_table(architecture).values():
        down, up, alpha = module.keys
        shapes[down], shapes[up] = module.lora_shapes(4)
        shapes[alpha] = ()
    found = apply(shapes, ours)
    assert (found.modules, found.faults) == (len(key_table(architecture)), [])
    assert found.modules > 350


@ALL
def test_each_table_takes_the_golden_264_modules(apply) -> None:
    if not FACTS.is_dir():
        pytest.skip("the golden list lies beside the project, and is not there")
    golden = json.loads((FACTS / "sd15_lora_rank32_keys.json").read_text())
    found = apply({name: tuple(shape) for name, shape in golden.items()}, SD15)
    assert (len(golden), found.modules, list(found.faults)) == (792, 264, [])


@ALL
def test_a_width_that_is_not_the_layers_is_found_by_each(apply) -> None:
    shapes = expected_shapes(4, architecture=TINY)
    assert apply(shapes, SD15).modules == 0
    name = "lora_unet_mid_block_attentions_0_proj_in"
    one_wrong = {**expected_shapes(4), f"{name}.lora_down.weight": (4, 1279, 1, 1)}
    found = apply(one_wrong, SD15)
    assert found.modules == 263
    assert len(found.faults) == 1
    assert name in found.faults[0]


@ALL
def test_kernels_of_one_by_one_may_be_written_as_linear_layers(apply) -> None:
    flat = {name: shape[:2] for name, shape in expected_shapes(4).items()}
    assert (apply(flat, SD15).modules, apply(flat, SD15).faults) == (264, [])


def test_convolutions_of_a_locon_are_known() -> None:
    shapes = shapes_of(locon_state())
    for apply in TABLES.values():
        found = apply(shapes, NARROW)
        assert (found.modules * 3, found.faults) == (len(shapes), [])


def counts(shapes: dict[str, Shape], widths: Widths = NARROW) -> dict[str, int]:
    return {ui: apply(shapes, widths).modules for ui, apply in TABLES.items()}


def test_a_diffusers_file_is_lost_in_a1111_without_a_word_and_none_takes_it_whole() -> None:
    shapes = shapes_of(in_diffusers(lora_state()))
    assert counts(shapes) == {"A1111": 0, "ComfyUI": 0, "InvokeAI": 0}
    assert "silently" in a1111.apply(shapes, NARROW).faults[0]
    assert "Forge skips the whole file" in a1111.apply(shapes, NARROW).faults[0]


def test_a_peft_file_is_taken_by_none() -> None:
    assert counts(shapes_of(in_peft(lora_state(), "unet"))) == {"A1111": 0, "ComfyUI": 0, "InvokeAI": 0}


def test_the_prefix_te1_is_taken_by_two_and_dropped_by_invokeai() -> None:
    shapes = {name.replace("lora_te_", "lora_te1_"): shape for name, shape in expected_shapes(4).items()}
    assert counts(shapes, SD15) == {"A1111": 264, "ComfyUI": 264, "InvokeAI": 192}
    assert "drops 72 modules" in invokeai.apply(shapes, SD15).faults[0]


def test_twelve_unknown_tensors_pass_forge_and_thirteen_do_not() -> None:
    shapes = expected_shapes(4)
    extra = {f"lora_unet_unknown_{number}.alpha": () for number in range(13)}
    assert "Forge skips the whole file" in a1111.apply({**shapes, **extra}, SD15).faults[0]
    extra.popitem()
    assert "Forge tells it in its log" in a1111.apply({**shapes, **extra}, SD15).faults[0]


@pytest.mark.parametrize(
    ("kohya", "compvis"),
    [
        ("lora_unet_down_blocks_0_attentions_0_proj_in", "diffusion_model_input_blocks_1_1_proj_in"),
        ("lora_unet_down_blocks_2_attentions_1_proj_out", "diffusion_model_input_blocks_8_1_proj_out"),
        ("lora_unet_mid_block_attentions_0_proj_in", "diffusion_model_middle_block_1_proj_in"),
        ("lora_unet_mid_block_resnets_1_conv1", "diffusion_model_middle_block_2_in_layers_2"),
        ("lora_unet_up_blocks_3_attentions_2_proj_in", "diffusion_model_output_blocks_11_1_proj_in"),
        ("lora_unet_up_blocks_0_upsamplers_0_conv", "diffusion_model_output_blocks_2_1_conv"),
        ("lora_unet_up_blocks_1_upsamplers_0_conv", "diffusion_model_output_blocks_5_2_conv"),
        ("lora_te_text_model_encoder_layers_11_mlp_fc1", "transformer_text_model_encoder_layers_11_mlp_fc1"),
        ("something_else", "something_else"),
    ],
)
def test_a1111_turns_names_into_ldms(kohya: str, compvis: str) -> None:
    assert a1111.compvis_name(kohya) == compvis


def test_a_name_that_ends_before_a_layer_leads_nowhere() -> None:
    tree = {"mid_block": {"attentions": {"0": {"proj_in": (4, 4, 1, 1)}}}}
    assert invokeai.walk(tree, "mid_block_attentions_0_proj_in") == (4, 4, 1, 1)
    for flat in (
        "mid_block",
        "mid_block_attentions_0",
        "mid_block_attentions_0_proj_in_x",
        "mid_block_attentions_7_proj_in",
    ):
        assert invokeai.walk(tree, flat) is None
