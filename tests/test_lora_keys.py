from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from brushset.bases.configs import SD15, TINY
from brushset.lora.keys import expected_shapes, key_table, kohya_name, standard_modules

GOLDEN = Path(__file__).parent.parent.parent / "shared" / "facts" / "sd15_lora_rank32_keys.json"


def test_the_table_names_354_layers_and_marks_264() -> None:
    table = key_table()
    assert len(table) == 354
    assert len({module.path + module.component for module in table.values()}) == 354
    marked = [module.component for module in table.values() if module.standard]
    assert (marked.count("unet"), marked.count("text_encoder")) == (192, 72)


def test_every_name_is_its_paths_name() -> None:
    assert all(kohya_name(module.component, module.path) == name for name, module in key_table().items())


def test_the_narrow_model_has_the_same_264_modules() -> None:
    full = {module.kohya: module.path for module in standard_modules(SD15)}
    assert {module.kohya: module.path for module in standard_modules(TINY)} == full


def test_keys_and_shapes_are_those_of_a_file_that_sd_scripts_wrote() -> None:
    if not GOLDEN.is_file():
        pytest.skip(f"{GOLDEN} is not there")
    golden = {name: tuple(shape) for name, shape in json.loads(GOLDEN.read_text()).items()}
    assert len(golden) == 792
    assert expected_shapes(32) == golden


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", (32, 768)),
        ("lora_te_text_model_encoder_layers_11_mlp_fc1.lora_up.weight", (3072, 32)),
        ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", (32, 320, 1, 1)),
        ("lora_unet_mid_block_attentions_0_proj_out.lora_up.weight", (1280, 32, 1, 1)),
        ("lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_attn2_to_k.lora_down.weight", (32, 768)),
        ("lora_unet_down_blocks_2_attentions_1_transformer_blocks_0_ff_net_0_proj.lora_up.weight", (10240, 32)),
        ("lora_unet_up_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0.alpha", ()),
    ],
)
def test_known_shapes(key: str, shape: tuple[int, ...]) -> None:
    assert expected_shapes(32)[key] == shape


def test_without_text_encoder_192_modules_are_expected() -> None:
    names = expected_shapes(8, text_encoder=False)
    assert len(names) == 576
    assert all(name.startswith("lora_unet_") for name in names)


def test_a_convolutions_kernel_goes_into_down() -> None:
    module = key_table()["lora_unet_down_blocks_0_resnets_0_conv1"]
    assert not module.standard
    assert module.lora_shapes(4) == ((4, 320, 3, 3), (320, 4, 1, 1))


def test_importing_the_table_does_not_import_torch() -> None:
    code = "import sys, brushset.lora.keys, brushset.lora.convert, brushset.lora.verify, brushset.stages.convert\n"
    code += "assert not {'torch', 'diffusers', 'transformers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)
