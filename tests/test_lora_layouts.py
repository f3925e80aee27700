"""Every way in which SD 1.5 LoRAs are named is read as what it means; everything else is refused as what it is."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from lora_files import (
    State,
    in_diffusers,
    in_old_diffusers,
    in_peft,
    in_processors,
    locon_state,
    lora_state,
    modules_of,
    save,
    write_lora,
)

from brushset.bases.configs import SD15
from brushset.errors import UsageError, VerificationFailed
from brushset.lora.adapter import MAX_RANK, WEIGHT_NAME, read_adapter
from brushset.lora.keys import key_table

SHARED = Path(__file__).parent.parent.parent / "shared" / "data" / "loras"


def equal_to(state: State, path: Path, *, modules: int) -> None:
    """Asserts that a file means the same updates as a Kohya state dict, module by module."""
    import torch

    adapter = read_adapter(path)
    assert len(adapter.factors) == modules
    expected = modules_of(state)
    for name, factor in adapter.factors.items():
        _, _, down, up = expected[name]
        torch.testing.assert_close(factor.delta(), up.flatten(1) @ down.flatten(1), rtol=1e-6, atol=1e-7)


def test_kohya(tmp_path: Path) -> None:
    state = lora_state()
    equal_to(state, save(state, tmp_path / "x.safetensors"), modules=264)


def test_convolutions_are_349_modules(tmp_path: Path) -> None:
    state = locon_state()
    equal_to(state, save(state, tmp_path / "x.safetensors"), modules=349)
    kernels = {tuple(module.shape[2:]) for name, module in key_table().items() if f"{name}.alpha" in state}
    assert kernels == {(), (1, 1), (3, 3)}


def test_convolutions_of_full_width_with_the_shortcut_that_the_narrow_model_lacks(tmp_path: Path) -> None:
    state = locon_state(architecture=SD15, dim=1, conv_dim=1)
    assert "lora_unet_down_blocks_2_resnets_0_conv_shortcut.alpha" in state
    found = read_adapter(save(state, tmp_path / "x.safetensors"))
    assert len(found.factors) == len(state) // 3
    assert found.architecture == SD15


def test_the_unet_alone_and_the_text_encoder_alone(tmp_path: Path) -> None:
    state = lora_state()
    for prefix, modules in (("lora_unet_", 192), ("lora_te_", 72)):
        part = {name: tensor for name, tensor in state.items() if name.startswith(prefix)}
        equal_to(state, save(part, tmp_path / "x.safetensors"), modules=modules)


def test_missing_alpha_is_the_rank(tmp_path: Path) -> None:
    state = lora_state(alpha=4.0, dim=4)
    bare = {name: tensor for name, tensor in state.items() if not name.endswith("alpha")}
    path = save(bare, tmp_path / "x.safetensors")
    equal_to(state, path, modules=264)
    assert not read_adapter(path).alpha_stated


def test_diffusers_own_kohya_names_with_te1_and_integer_alphas(tmp_path: Path) -> None:
    import torch

    state = lora_state(alpha=4.0, dim=4)
    named = {
        name.replace("lora_te_", "lora_te1_"): torch.tensor(4) if name.endswith("alpha") else tensor
        for name, tensor in state.items()
    }
    path = save(named, tmp_path / "x.safetensors")
    equal_to(state, path, modules=264)
    assert read_adapter(path).old_text_prefix


@pytest.mark.parametrize(
    ("write", "kind", "modules"),
    [
        (in_diffusers, "diffusers", 264),
        (in_old_diffusers, "diffusers-old", 264),
        (in_processors, "attn-processors", 176),
        (lambda state: in_processors(state, prefix=""), "attn-processors", 176),
        (lambda state: in_peft(state, "unet"), "peft", 192),
        (lambda state: in_peft(state, "text_encoder"), "peft", 72),
    ],
)
def test_diffusers_layouts(write: Any, kind: str, modules: int, tmp_path: Path) -> None:
    state = lora_state()
    path = save(write(state), tmp_path / "x.safetensors")
    equal_to(state, path, modules=modules)
    assert read_adapter(path).layouts == (kind,)


def test_a_peft_state_dict_with_the_adapters_name_in_its_keys(tmp_path: Path) -> None:
    state = lora_state()
    named = {name.replace(".weight", ".default.weight"): tensor for name, tensor in in_peft(state, "unet").items()}
    equal_to(state, save(named, tmp_path / "x.safetensors"), modules=192)


def test_alpha_in_pefts_config_beside_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "peft"
    state = lora_state(dim=4, alpha=4.0)
    path = save(in_peft(state, "unet"), folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 2, "alpha_pattern": {"mid_block.attentions.0.proj_in": 8}}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    factors = read_adapter(folder).factors
    assert factors["lora_unet_mid_block_attentions_0_proj_out"].alpha == 2
    assert factors["lora_unet_mid_block_attentions_0_proj_in"].alpha == 8
    (folder / "adapter_config.json").write_text(json.dumps({**config, "use_rslora": True}))
    assert read_adapter(path).factors["lora_unet_mid_block_attentions_0_proj_out"].scale == pytest.approx(2 / 4**0.5)
    for broken in ({**config, "use_dora": True}, {**config, "peft_type": "LOHA"}, {"lora_alpha": "x"}):
        (folder / "adapter_config.json").write_text(json.dumps(broken))
        with pytest.raises(UsageError, match=r"adapter_config\.json"):
            read_adapter(folder)


def test_pefts_two_folders_are_one_adapter(tmp_path: Path) -> None:
    state = lora_state()
    for part in ("unet", "text_encoder"):
        save(in_peft(state, part), tmp_path / part / "adapter_model.safetensors")
    equal_to(state, tmp_path, modules=264)


def test_alpha_in_diffusers_adapter_metadata_is_what_diffusers_makes_of_it(tmp_path: Path) -> None:
    """The oracle: diffusers' own saver and loader, on the narrow UNet."""
    import torch
    from diffusers import UNet2DConditionModel
    from peft import LoraConfig

    from brushset.bases.configs import TINY, unet_config

    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config(unet_config(TINY))
    unet.add_adapter(LoraConfig(r=4, lora_alpha=3, target_modules=["to_q", "proj_in"], init_lora_weights=False))
    unet.save_lora_adapter(tmp_path, weight_name=WEIGHT_NAME)
    from safetensors.torch import load_file

    state = {f"unet.{name}": tensor for name, tensor in load_file(tmp_path / WEIGHT_NAME).items()}
    config = {"unet.r": 4, "unet.lora_alpha": 3, "unet.alpha_pattern": {}, "unet.rank_pattern": {}}
    path = save(state, tmp_path / "x.safetensors", {"lora_adapter_metadata": json.dumps(config)})
    adapter = read_adapter(path)
    layer = unet.mid_block.attentions[0].proj_in
    factor = adapter.factors["lora_unet_mid_block_attentions_0_proj_in"]
    torch.testing.assert_close(factor.delta(), layer.get_delta_weight("default").flatten(1))
    assert adapter.alpha_stated


def counted(state: State, *, between: bool = True) -> tuple[State, dict[str, str]]:
    """cloneofsimo's layout, from the order in which a walk over 2022's models met the layers."""
    attention = ["to_q", "to_k", "to_v", "to_out.0"]
    inner = [f"attn1.{name}" for name in attention] + [f"attn2.{name}" for name in attention]
    inner.insert(4 if between else 8, "ff.net.0.proj")
    blocks = [f"down_blocks.{b}.attentions.{n}" for b in (0, 1, 2) for n in (0, 1)]
    blocks += [f"up_blocks.{b}.attentions.{n}" for b in (1, 2, 3) for n in (0, 1, 2)] + ["mid_block.attentions.0"]
    unet = [f"{block}.transformer_blocks.0.{name}" for block in blocks for name in inner]
    text = [
        f"text_model.encoder.layers.{n}.self_attn.{name}_proj" for n in range(12) for name in ("k", "v", "q", "out")
    ]
    by_path = {(component, path): (down, up) for component, path, down, up in modules_of(state).values()}
    out = {}
    for component, paths in (("unet", unet), ("text_encoder", text)):
        for number, path in enumerate(paths):
            out[f"{component}:{number}:down"], out[f"{component}:{number}:up"] = by_path[component, path]
    told = {"unet": '["CrossAttention", "Attention", "GEGLU"]', "text_encoder": '["CLIPAttention"]'}
    return out, told


@pytest.mark.parametrize("between", [True, False])
def test_counted_layers_are_told_by_their_shapes(between: bool, tmp_path: Path) -> None:
    state = lora_state()
    layers, told = counted(state, between=between)
    path = save(layers, tmp_path / "x.safetensors", told)
    equal_to(state, path, modules=192)
    assert read_adapter(path).layouts == ("cloneofsimo",)


def test_counted_layers_of_unknown_classes_are_not_guessed(tmp_path: Path) -> None:
    layers, told = counted(lora_state())
    path = save(layers, tmp_path / "x.safetensors", {**told, "unet": '["ResnetBlock2D"]'})
    with pytest.raises(VerificationFailed, match="384 keys name no module"):
        read_adapter(path)


@pytest.mark.parametrize(
    ("name", "kind", "modules"),
    [
        ("catundchat__pytorch_lora_weights.safetensors", "attn-processors", 128),
        ("cloneofsimo__analog_svd_rank4.safetensors", "cloneofsimo", 192),
    ],
)
def test_real_files(name: str, kind: str, modules: int) -> None:
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not there")
    adapter = read_adapter(SHARED / name)
    assert (adapter.layouts, len(adapter.factors), adapter.ranks) == ((kind,), modules, [4])
    assert adapter.architecture is SD15


M = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
D = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"


@pytest.mark.parametrize(
    ("shapes", "what"),
    [
        ({f"{M}.hada_w1_a": (8, 4), f"{M}.alpha": ()}, "a LoHa"),
        ({f"{M}.lokr_w1": (8, 4)}, "a LoKr"),
        ({f"{M}.lora_down.weight": (4, 768), f"{M}.lora_up.weight": (640, 4), f"{M}.dora_scale": (1, 768)}, "a DoRA"),
        ({f"{D}.lora_A.weight": (4, 768), f"{D}.lora_magnitude_vector": (640,)}, "a DoRA"),
        ({f"{M}.oft_blocks": (4, 8, 8)}, "an OFT"),
        ({f"{M}.lora_mid.weight": (4, 4, 3, 3)}, "Tucker"),
        ({f"{M}.diff": (640, 768), f"{M}.diff_b": (640,)}, "full differences"),
        ({f"{M}.on_input": ()}, "an IA3"),
        ({f"{D}.lora_A.weight": (4, 768), f"{D}.lora_B.bias": (640,)}, "biases"),
        ({f"{M}.lora_down.weight": (4, 2048)}, "a LoRA of SDXL"),
        ({f"{D}.lora_A.weight": (4, 1024)}, "a LoRA of SD 2"),
        ({D.replace("to_k", "processor.to_k_lora.down.weight"): (4, 1024)}, "a LoRA of SD 2"),
        ({"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (4, 1280)}, "SDXL"),
        ({"lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_down.weight": (4, 640)}, "SDXL"),
        ({D.replace("transformer_blocks.0", "transformer_blocks.7") + ".lora_A.weight": (4, 640)}, "SDXL"),
        ({f"{M.replace('blocks_0', 'blocks_9')}.hada_w1_a": (8, 4)}, r"a LoHa .* of SDXL"),
        ({"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": (4, 3072)}, "Flux"),
        ({"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": (4, 3072)}, "Flux"),
        ({"lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight": (4, 1536)}, "SD 3"),
        ({"transformer.transformer_blocks.0.attn.add_q_proj.lora_A.weight": (4, 1536)}, "SD 3"),
        ({"transformer.transformer_blocks.0.attn.to_q.lora_A.weight": (4, 1536)}, "a diffusion transformer"),
        ({"emb_params": (2, 768)}, "textual-inversion"),
        ({"model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3)}, "a checkpoint"),
        ({"unet.conv_in.weight": (320, 4, 3, 3)}, "no LoRA: its keys are like unet"),
    ],
)
def test_other_methods_and_models_are_named(shapes: dict[str, tuple[int, ...]], what: str, tmp_path: Path) -> None:
    import torch

    path = save({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "x.safetensors")
    with pytest.raises(UsageError, match=what) as caught:
        read_adapter(path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "extra",
    [
        "lora_te_text_model_embeddings.alpha",
        "lora_unet_nothing.lora_up.weight",
        "unet.something.lora_C.weight",
        "lora.x",
    ],
)
def test_leftovers_raise_and_are_named(extra: str, tmp_path: Path) -> None:
    import torch

    path = save({**lora_state(), extra: torch.tensor([[1.0]])}, tmp_path / "x.safetensors")
    name = extra.removesuffix(".alpha").removesuffix(".lora_up.weight")
    with pytest.raises(VerificationFailed, match=name):
        read_adapter(path)


def test_a_whole_module_that_the_model_has_not_is_named(tmp_path: Path) -> None:
    import torch

    name = "lora_unet_down_blocks_7_attentions_0_proj_in"
    extra = {f"{name}.lora_down.weight": torch.ones(4, 32), f"{name}.lora_up.weight": torch.ones(32, 4)}
    with pytest.raises(VerificationFailed, match=f"1 modules are none of SD 1.5's: {name}"):
        read_adapter(save({**lora_state(), **extra}, tmp_path / "x.safetensors"))


def test_two_keys_for_one_weight_are_both_named(tmp_path: Path) -> None:
    state = lora_state()
    mixed = {**state, **in_diffusers({name: tensor for name, tensor in state.items() if "mid_block" in name})}
    with pytest.raises(VerificationFailed, match=r"24 weights stand there twice: lora_unet_mid.* and unet\.mid"):
        read_adapter(save(mixed, tmp_path / "x.safetensors"))


@pytest.mark.parametrize("part", ["lora_up.weight", "lora_down.weight"])
def test_half_a_module_raises_and_is_named(part: str, tmp_path: Path) -> None:
    state = lora_state()
    del state[f"lora_te_text_model_encoder_layers_3_mlp_fc1.{part}"]
    with pytest.raises(VerificationFailed, match=r"incomplete.*layers_3_mlp_fc1"):
        read_adapter(save(state, tmp_path / "x.safetensors"))


def test_all_findings_of_the_names_come_at_once(tmp_path: Path) -> None:
    import torch

    state = lora_state()
    del state["lora_te_text_model_encoder_layers_3_mlp_fc1.lora_up.weight"]
    state["lora_unet_x.y"] = torch.zeros(1)
    with pytest.raises(VerificationFailed) as caught:
        read_adapter(save(state, tmp_path / "x.safetensors"))
    assert len(str(caught.value).splitlines()) == 2


FC1 = "lora_te_text_model_encoder_layers_0_mlp_fc1"


def changed(**values: Any) -> State:
    names = {"down": f"{FC1}.lora_down.weight", "up": f"{FC1}.lora_up.weight", "alpha": f"{FC1}.alpha"}
    return {**lora_state(), **{names[part]: tensor for part, tensor in values.items()}}


def test_values_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    import torch

    nan = torch.full((64, 4), float("nan"))
    cases = [
        (changed(up=nan), "1 of 792 tensors hold NaN or infinity: .*fc1"),
        (changed(alpha=torch.tensor(float("inf"))), "NaN or infinity"),
        (changed(alpha=torch.tensor(0.0)), "alpha is 0.0: sd-scripts takes 0 as the rank"),
        (changed(alpha=torch.ones(2)), "alpha is None"),
        (changed(down=torch.ones(3, 32)), "do not multiply"),
        (changed(down=torch.ones(4, 33)), "modules do not fit SD 1.5"),
        (changed(down=torch.ones(0, 32), up=torch.ones(64, 0)), "rank 0"),
        (changed(down=torch.ones(MAX_RANK + 1, 32), up=torch.ones(64, MAX_RANK + 1)), f"rank {MAX_RANK + 1}"),
    ]
    for number, (state, message) in enumerate(cases):
        path = save(state, tmp_path / f"{number}.safetensors")
        with pytest.raises(VerificationFailed, match=message):
            read_adapter(path)


def test_stored_integers_are_no_weights(tmp_path: Path) -> None:
    import torch

    with pytest.raises(UsageError, match="stored as I8"):
        read_adapter(save(changed(up=torch.ones(64, 4, dtype=torch.int8)), tmp_path / "x.safetensors"))


def test_a_1x1_convolution_written_as_a_linear_layer_is_read(tmp_path: Path) -> None:
    state = lora_state()
    flat = {name: tensor.flatten(1) if tensor.dim() == 4 else tensor for name, tensor in state.items()}
    path = save(flat, tmp_path / "x.safetensors")
    equal_to(state, path, modules=264)
    assert read_adapter(path).factors["lora_unet_mid_block_attentions_0_proj_in"].down.dim() == 4


def broken_header(path: Path, change: Any) -> Path:
    """The file with its header's JSON changed and nothing else."""
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    text = change(json.loads(content[8 : 8 + length]))
    text = text if isinstance(text, bytes) else json.dumps(text).encode()
    other = path.with_name("broken.safetensors")
    other.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    return other


def overlapping(header: dict[str, Any]) -> dict[str, Any]:
    names = [name for name in header if name.endswith("lora_up.weight")]
    header[names[1]]["data_offsets"] = header[names[0]]["data_offsets"]
    header[names[1]]["shape"] = header[names[0]]["shape"]
    return header


def outside(header: dict[str, Any]) -> dict[str, Any]:
    name = next(iter(header))
    start, end = header[name]["data_offsets"]
    header[name]["data_offsets"] = [start + 10**12, end + 10**12]
    return header


def negative(header: dict[str, Any]) -> dict[str, Any]:
    header[next(iter(header))]["data_offsets"] = [-4, 0]
    return header


def twice(header: dict[str, Any]) -> bytes:
    text = json.dumps(header)
    name, entry = next(iter(header.items()))
    return (text[:-1] + f', "{name}": {json.dumps(entry)}' + "}").encode()


def nested(_header: dict[str, Any]) -> bytes:
    return b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize("change", [overlapping, outside, negative, twice, nested])
def test_headers_that_lie_are_refused(change: Any, tmp_path: Path) -> None:
    path = broken_header(write_lora(tmp_path / "x.safetensors"), change)
    with pytest.raises(UsageError, match=r"header is broken|cut short|damaged"):
        read_adapter(path)


def test_folders(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no \.safetensors file in this folder"):
        read_adapter(tmp_path)
    (tmp_path / "pytorch_lora_weights.bin").write_bytes(b"PK\x03\x04")
    with pytest.raises(UsageError, match="are pickles"):
        read_adapter(tmp_path)
    first = write_lora(tmp_path / "a.safetensors")
    assert read_adapter(tmp_path).files == (first,)
    write_lora(tmp_path / "b.safetensors")
    with pytest.raises(UsageError, match=r"holds 2 files \(a.safetensors, b.safetensors\)"):
        read_adapter(tmp_path)
