from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_files import lora_state, write_lora

from brushset.errors import UsageError, VerificationFailed
from brushset.lora.convert import (
    WEIGHT_NAME,
    compare_deltas,
    convert_to_diffusers,
    diffusers_to_kohya,
    is_kohya,
    kohya_to_diffusers,
)
from brushset.paths import RunPaths
from brushset.pipeline import StageContext
from brushset.records import BaseFile, Trained
from brushset.spec import StyleSpec
from brushset.stages.convert import STAGE

State = dict[str, Any]
UNET_MODULE = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def save(state: State, path: Path) -> Path:
    from safetensors.torch import save_file

    save_file(state, path)
    return path


def compare(original: State, converted: State, folder: Path) -> float:
    return compare_deltas(save(original, folder / "k.safetensors"), save(converted, folder / "d.safetensors"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("alpha", [2.0, 4.0, 3.0, 0.7])
def test_deltas_are_equal_whatever_dtype_and_alpha(dtype: str, alpha: float, tmp_path: Path) -> None:
    lora = write_lora(tmp_path / "x.safetensors", dtype=dtype, alpha=alpha)
    conversion = convert_to_diffusers(lora, tmp_path / "adapter")
    assert conversion.path == tmp_path / "adapter" / WEIGHT_NAME
    assert conversion.modules == 264
    assert conversion.max_relative_error <= 1e-6


@pytest.mark.parametrize(("alpha", "kept"), [(2.0, True), (3.0, False)])
def test_the_dtype_is_kept_only_where_folding_is_exact_in_it(alpha: float, kept: bool, tmp_path: Path) -> None:
    import torch

    lora = write_lora(tmp_path / "x.safetensors", dtype="bfloat16", alpha=alpha)
    from safetensors.torch import load_file

    dtypes = {tensor.dtype for tensor in load_file(convert_to_diffusers(lora, tmp_path / "a").path).values()}
    assert dtypes == {torch.bfloat16 if kept else torch.float32}


def test_a_subnormal_that_folding_would_lose_makes_the_form_float32(tmp_path: Path) -> None:
    import torch

    state = {name: tensor.half() for name, tensor in lora_state(alpha=1.0).items()}
    state["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"][0, 0] = 2**-24
    converted = kohya_to_diffusers(state)
    assert {tensor.dtype for tensor in converted.values()} == {torch.float32}


@given(dim=st.integers(1, 5), alpha=st.floats(0.01, 64), seed=st.integers(0, 99), text_encoder=st.booleans())
@settings(max_examples=15, deadline=None)
def test_there_and_back_gives_the_same_file(dim: int, alpha: float, seed: int, *, text_encoder: bool) -> None:
    import torch

    state = lora_state(dim=dim, alpha=alpha, seed=seed, text_encoder=text_encoder)
    back = diffusers_to_kohya(kohya_to_diffusers(state), alpha=alpha)
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        torch.testing.assert_close(back[name], tensor, rtol=1e-6, atol=0)


def test_back_without_alpha_says_the_rank_and_keeps_the_strength(tmp_path: Path) -> None:
    state = lora_state(dim=4, alpha=2.0)
    converted = kohya_to_diffusers(state)
    back = diffusers_to_kohya(converted)
    assert {tensor.item() for name, tensor in back.items() if name.endswith(".alpha")} == {4.0}
    assert compare(back, converted, tmp_path) <= 1e-6


def alpha_dropped(state: State) -> State:
    return {name: tensor * 2 if "lora_B" in name else tensor for name, tensor in state.items()}


def text_encoder_dropped(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if name.startswith("unet.")}


def one_module_dropped(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if not name.startswith(UNET_MODULE + ".")}


def one_module_zero(state: State) -> State:
    return {name: tensor * 0 if name.startswith(UNET_MODULE + ".") else tensor for name, tensor in state.items()}


def up_and_down_swapped(state: State) -> State:
    swap = {f"{UNET_MODULE}.lora_A.weight": "lora_B.weight", f"{UNET_MODULE}.lora_B.weight": "lora_A.weight"}
    return {
        name: state[f"{UNET_MODULE}.{swap[name]}"].T.contiguous() if name in swap else tensor
        for name, tensor in state.items()
    }


def two_modules_swapped(state: State) -> State:
    names = {"attn1.to_q": "attn1.to_k", "attn1.to_k": "attn1.to_q"}
    stem = UNET_MODULE.removesuffix("attn1.to_q")
    renamed = {}
    for name, tensor in state.items():
        inner = name.removeprefix(stem)
        key = ".".join(inner.split(".")[:2])
        renamed[stem + inner.replace(key, names[key]) if name.startswith(stem) and key in names else name] = tensor
    return renamed


@pytest.mark.parametrize(
    "mutate",
    [
        alpha_dropped,
        text_encoder_dropped,
        one_module_dropped,
        one_module_zero,
        up_and_down_swapped,
        two_modules_swapped,
    ],
)
def test_no_mutant_passes(mutate: Callable[[State], State], tmp_path: Path) -> None:
    state = lora_state()
    converted = kohya_to_diffusers(state)
    assert compare(state, converted, tmp_path) <= 1e-6
    try:
        error = compare(state, mutate(converted), tmp_path)
    except VerificationFailed:
        return
    assert error > 1e-3


def test_a_wrong_conversion_is_never_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lora = write_lora(tmp_path / "x.safetensors")
    monkeypatch.setattr(
        "brushset.lora.convert.kohya_to_diffusers", lambda state, **_: alpha_dropped(kohya_to_diffusers(state))
    )
    with pytest.raises(VerificationFailed, match="differs"):
        convert_to_diffusers(lora, tmp_path / "adapter")


def test_nan_is_no_equality(tmp_path: Path) -> None:
    state = lora_state()
    state["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"][0, 0] = float("nan")
    with pytest.raises(VerificationFailed, match="differs"):
        convert_to_diffusers(save(state, tmp_path / "x.safetensors"), tmp_path / "adapter")


@pytest.mark.parametrize(
    "extra",
    ["lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha", "lora_unet_conv_in.lora_mid.weight", "something.else"],
)
def test_leftovers_raise_and_are_named(extra: str) -> None:
    import torch

    with pytest.raises(VerificationFailed, match=extra):
        kohya_to_diffusers({**lora_state(), extra: torch.tensor(1.0)})


@pytest.mark.parametrize("part", ["alpha", "lora_up.weight", "lora_down.weight"])
def test_an_incomplete_module_raises_and_is_named(part: str) -> None:
    state = lora_state()
    del state[f"lora_te_text_model_encoder_layers_3_mlp_fc1.{part}"]
    with pytest.raises(VerificationFailed, match="layers_3_mlp_fc1 is incomplete"):
        kohya_to_diffusers(state)


def test_modules_of_different_ranks_keep_their_deltas(tmp_path: Path) -> None:
    import torch

    state = lora_state(dim=4, alpha=2.0)
    name = "lora_unet_down_blocks_0_resnets_0_conv1"
    state |= {
        f"{name}.lora_down.weight": torch.randn(2, 32, 3, 3),
        f"{name}.lora_up.weight": torch.randn(32, 2, 1, 1),
        f"{name}.alpha": torch.tensor(1.5),
    }
    converted = kohya_to_diffusers(state)
    assert {tensor.shape[0] for key, tensor in converted.items() if "lora_A" in key} == {4}
    assert compare(state, converted, tmp_path) <= 1e-6


def test_the_two_forms_are_told_apart(tmp_path: Path) -> None:
    lora = write_lora(tmp_path / "x.safetensors")
    assert is_kohya(lora)
    assert not is_kohya(convert_to_diffusers(lora, tmp_path / "a").path)
    import torch

    with pytest.raises(UsageError, match=r"base_model\.model\.x"):
        is_kohya(save({"base_model.model.x": torch.zeros(1)}, tmp_path / "peft.safetensors"))


def test_diffusers_own_reading_of_the_kohya_file_gives_the_same_unet_and_text_encoder(
    tiny_base: BaseFile, tmp_path: Path
) -> None:
    """The oracle: diffusers' loader of Kohya files, which shares no code with ours."""
    import torch

    from brushset.bases.load import load_pipeline

    lora = write_lora(tmp_path / "x.safetensors")
    conversion = convert_to_diffusers(lora, tmp_path / "adapter")
    outputs = []
    for path in (lora, conversion.path):
        pipeline = load_pipeline(tiny_base)
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name="x")
        pipeline.set_adapters(["x"], [0.8])
        text = pipeline.text_encoder(torch.arange(77)[None]).last_hidden_state
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        outputs.append((text, pipeline.unet(latents, 500, text).sample))
    for kohya, ours in zip(*outputs, strict=True):
        assert (kohya - ours).norm() <= 1e-6 * kohya.norm()


def test_the_stage_leaves_a_folder_and_says_how_equal_it_is(tmp_path: Path) -> None:
    run = RunPaths(tmp_path / "cartoon" / "run")
    run.weights.mkdir(parents=True)
    write_lora(run.weights / "cartoon.safetensors")
    trained = Trained.model_construct(weights="weights/cartoon.safetensors")
    notes: list[object] = []
    spec = StyleSpec(name="cartoon", trigger="cartoonstyle")
    workdir = run.workdir("convert")
    context = StageContext(
        spec, run, workdir, lambda _event, **fields: notes.append(fields["text"]), {Trained: trained}, None
    )
    adapter = STAGE.run(context)
    assert (adapter.path, adapter.modules) == ("adapter", 264)
    assert adapter.max_relative_error <= 1e-6
    assert [path.name for path in workdir.iterdir()] == [WEIGHT_NAME]
    assert "264 modules" in str(notes)
