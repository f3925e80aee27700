"""Both forms of an adapter are the same update, and the proof notices where they are not."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_files import State, in_old_diffusers, in_peft, in_processors, locon_state, lora_state, save, write_lora

from brushset.bases.configs import SD15
from brushset.errors import UsageError, VerificationFailed
from brushset.lora import convert, outputs
from brushset.lora.adapter import WEIGHT_NAME, AdapterFile, Factors, read_adapter
from brushset.lora.convert import Conversion, convert_adapter, report_path
from brushset.lora.deltas import compare_deltas
from brushset.lora.forms import describe_origin, restore_origin, to_diffusers, to_kohya
from brushset.lora.keys import key_table
from brushset.lora.metadata import model_hash, read_metadata
from brushset.lora.outputs import OutputCheck, compare_outputs
from brushset.paths import RunPaths
from brushset.pipeline import StageContext
from brushset.records import BaseFile, Trained
from brushset.spec import StyleSpec
from brushset.stages.convert import STAGE

UNET_MODULE = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
SHARED = Path(__file__).parent.parent.parent / "shared" / "data" / "loras"


def to_folder(lora: Path, folder: Path, *, verify: bool = True) -> Conversion:
    return convert_adapter(read_adapter(lora), "diffusers", folder / WEIGHT_NAME, verify=verify)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("alpha", [2.0, 4.0, 3.0, 0.7])
def test_deltas_are_equal_whatever_dtype_and_alpha(dtype: str, alpha: float, tmp_path: Path) -> None:
    source = read_adapter(write_lora(tmp_path / "x.safetensors", dtype=dtype, alpha=alpha))
    result = read_adapter(save(to_diffusers(source.factors), tmp_path / "d.safetensors"))
    check = compare_deltas(source.factors, result.factors, "x")
    assert (check.modules, check.max_relative_error <= 1e-6) == (264, True)


@pytest.mark.parametrize(("alpha", "kept"), [(2.0, True), (3.0, False)])
def test_the_dtype_is_kept_only_where_folding_is_exact_in_it(alpha: float, kept: bool, tmp_path: Path) -> None:
    lora = write_lora(tmp_path / "x.safetensors", dtype="bfloat16", alpha=alpha)
    assert to_folder(lora, tmp_path / "a", verify=False).dtypes == (("BF16",) if kept else ("F32",))


def test_a_subnormal_that_folding_would_lose_makes_the_form_float32(tmp_path: Path) -> None:
    import torch

    state = {name: tensor.half() for name, tensor in lora_state(alpha=1.0).items()}
    state["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"][0, 0] = 2**-24
    converted = to_diffusers(read_adapter(save(state, tmp_path / "x.safetensors")).factors)
    assert {tensor.dtype for tensor in converted.values()} == {torch.float32}


@given(dim=st.integers(1, 5), alpha=st.floats(0.01, 64), seed=st.integers(0, 99), text_encoder=st.booleans())
@settings(max_examples=12, deadline=None)
def test_there_and_back_gives_the_same_tensors(dim: int, alpha: float, seed: int, *, text_encoder: bool) -> None:
    import torch

    state = lora_state(dim=dim, alpha=alpha, seed=seed, text_encoder=text_encoder)
    factors = factors_of(state)
    converted = to_diffusers(factors)
    folded = {
        module.kohya: Factors(*found, float(dim))
        for module in key_table().values()
        if (found := pair(converted, f"{module.component}.{module.path}"))
    }
    back = to_kohya(restore_origin(folded, describe_origin(factors), "x"))
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        torch.testing.assert_close(back[name], tensor, rtol=1e-6, atol=0)


def factors_of(state: State) -> dict[str, Factors]:
    found = {}
    for module in key_table().values():
        down, up, alpha = module.keys
        if down in state:
            found[module.kohya] = Factors(state[down], state[up], state[alpha].item())
    return found


def pair(state: State, path: str) -> tuple[Any, Any] | None:
    down = state.get(f"{path}.lora_A.weight")
    return None if down is None else (down, state[f"{path}.lora_B.weight"])


@pytest.mark.parametrize(("dtype", "alpha"), [("float32", 2.0), ("bfloat16", 3.0), ("float16", 3.0)])
def test_a_locon_file_goes_there_and_back_byte_for_byte(dtype: str, alpha: float, tmp_path: Path) -> None:
    import torch

    state = {
        name: tensor.to(getattr(torch, dtype))
        for name, tensor in locon_state(dim=4, alpha=alpha, conv_dim=2, conv_alpha=alpha / 4).items()
    }
    lora = save(state, tmp_path / "x.safetensors", {"ss_network_dim": "4", "modelspec.title": "x"})
    there = to_folder(lora, tmp_path / "d")
    assert there.deltas is not None
    assert there.deltas.modules == 349
    back = convert_adapter(read_adapter(there.path), "kohya", tmp_path / "back.safetensors")
    assert model_hash(back.path) == model_hash(lora)
    told = read_metadata(back.path)
    assert (told["modelspec.title"], told["ss_network_dim"]) == ("x", "4")


def test_modules_of_different_ranks_are_padded_for_diffusers(tmp_path: Path) -> None:
    lora = save(locon_state(dim=4, conv_dim=2), tmp_path / "x.safetensors")
    converted = to_diffusers(read_adapter(lora).factors)
    assert {tensor.shape[0] for key, tensor in converted.items() if "lora_A" in key} == {4}


def test_a_description_that_lies_changes_no_update(tmp_path: Path) -> None:
    factors = read_adapter(write_lora(tmp_path / "x.safetensors")).factors
    origin = {"dtype": "float16", "modules": {"*": [2, 7.0]}}
    restored = restore_origin(factors, json.dumps(origin), "x")
    assert compare_deltas(factors, restored, "x").max_relative_error == 0
    for broken in ("", "[]", "{}", '{"dtype": "int8", "modules": {"*": [1, 1]}}', '{"dtype": "float16", "modules": 3}'):
        with pytest.raises(VerificationFailed, match=r"brushset\.kohya is broken"):
            restore_origin(factors, broken, "x")


@pytest.mark.parametrize(
    "write", [in_old_diffusers, in_processors, lambda state: in_peft(state, "unet")], ids=["old", "processors", "peft"]
)
@pytest.mark.parametrize("to", ["kohya", "diffusers"])
def test_every_layout_converts_and_is_proven(write: Callable[[State], State], to: Any, tmp_path: Path) -> None:
    source = read_adapter(save(write(lora_state()), tmp_path / "x.safetensors"))
    conversion = convert_adapter(source, to, tmp_path / "out" / WEIGHT_NAME)
    assert conversion.deltas is not None
    assert conversion.outputs is not None
    assert conversion.deltas.max_relative_error <= 1e-6
    assert conversion.outputs.worst <= 1e-5
    assert all(0.01 <= effect <= 0.2 for effect in conversion.outputs.effects.values())
    told = read_metadata(conversion.path)
    if to == "kohya":
        assert (told["ss_network_dim"], told["ss_base_model_version"]) == ("4", "sd_v1")
        assert told["sshs_model_hash"] == model_hash(conversion.path)


def test_what_has_the_form_already_is_not_converted(tmp_path: Path) -> None:
    lora = write_lora(tmp_path / "x.safetensors")
    with pytest.raises(UsageError, match="is in Kohya's form already"):
        convert_adapter(read_adapter(lora), "kohya", tmp_path / "y.safetensors")
    folder = to_folder(lora, tmp_path / "d", verify=False).path.parent
    with pytest.raises(UsageError, match="is in diffusers' form already"):
        convert_adapter(read_adapter(folder), "diffusers", tmp_path / "e" / WEIGHT_NAME)


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


MUTANTS = [
    alpha_dropped,
    text_encoder_dropped,
    one_module_dropped,
    one_module_zero,
    up_and_down_swapped,
    two_modules_swapped,
]


@pytest.mark.parametrize("mutate", MUTANTS)
def test_no_mutants_deltas_pass(mutate: Callable[[State], State], tmp_path: Path) -> None:
    source = read_adapter(write_lora(tmp_path / "x.safetensors"))
    mutant = save(mutate(to_diffusers(source.factors)), tmp_path / "d.safetensors")
    try:
        error = compare_deltas(source.factors, read_adapter(mutant).factors, "x").max_relative_error
    except VerificationFailed:
        return
    assert error > 1e-3


@pytest.mark.parametrize("mutate", MUTANTS)
def test_no_mutants_outputs_pass(mutate: Callable[[State], State], tmp_path: Path) -> None:
    """Through diffusers' own loader, against sd-scripts' rule: the two share nothing."""
    source = read_adapter(write_lora(tmp_path / "x.safetensors"))
    mutant = save(mutate(to_diffusers(source.factors)), tmp_path / "d.safetensors")
    assert compare_outputs(source, read_adapter(mutant)).worst > 10 * outputs.MAX_OUTPUT_ERROR


@pytest.mark.parametrize("mutate", MUTANTS)
def test_no_mutants_layers_pass_where_memory_is_short(
    mutate: Callable[[State], State], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = read_adapter(write_lora(tmp_path / "x.safetensors"))
    wide = dataclasses.replace(source, architecture=SD15)
    monkeypatch.setattr(outputs, "_MODEL_BYTES", 1 << 60)
    good = read_adapter(save(to_diffusers(source.factors), tmp_path / "g.safetensors"))
    check = compare_outputs(wide, good)
    assert check.how.startswith("each layer by itself")
    assert check.worst <= 1e-6
    mutant = read_adapter(save(mutate(to_diffusers(source.factors)), tmp_path / "d.safetensors"))
    if mutant.factors.keys() == source.factors.keys():
        assert compare_outputs(wide, mutant).worst > 1e-3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_outputs_are_equal_in_float32_whatever_the_files_dtype(dtype: str, tmp_path: Path) -> None:
    conversion = to_folder(write_lora(tmp_path / "x.safetensors", dtype=dtype, alpha=3.0), tmp_path / "d")
    check = conversion.outputs
    assert check is not None
    assert check.worst <= 1e-5
    assert set(check.effects) == {"unet", "text_encoder"}
    assert all(0.01 <= effect <= 0.2 for effect in check.effects.values())


def test_an_effect_too_small_to_see_is_scaled_up(tmp_path: Path) -> None:
    state = {name: tensor * 1e-5 if "lora_up" in name else tensor for name, tensor in lora_state().items()}
    check = to_folder(save(state, tmp_path / "x.safetensors"), tmp_path / "d").outputs
    assert check is not None
    assert all(scale > 1e3 for scale in check.scales.values())
    assert all(0.01 <= effect <= 0.2 for effect in check.effects.values())


def test_a_wrong_conversion_is_never_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lora = write_lora(tmp_path / "x.safetensors")
    monkeypatch.setattr(convert, "to_diffusers", lambda factors: alpha_dropped(to_diffusers(factors)))
    with pytest.raises(VerificationFailed, match="differs by 1 where 1e-06 is allowed"):
        to_folder(lora, tmp_path / "adapter")
    assert not list((tmp_path / "adapter").iterdir())
    monkeypatch.setattr(convert, "compare_deltas", lambda *_: convert.DeltaCheck(264, 0.0, "none"))
    with pytest.raises(VerificationFailed, match="the unet's output differs"):
        to_folder(lora, tmp_path / "adapter")
    assert not list((tmp_path / "adapter").iterdir())


def test_a_failed_conversion_leaves_the_older_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lora = write_lora(tmp_path / "x.safetensors")
    path = to_folder(lora, tmp_path / "d", verify=False).path
    before = path.read_bytes()
    monkeypatch.setattr(convert, "to_diffusers", lambda factors: alpha_dropped(to_diffusers(factors)))
    with pytest.raises(VerificationFailed):
        to_folder(lora, tmp_path / "d")
    assert path.read_bytes() == before


def test_the_figures_stand_beside_the_result(tmp_path: Path) -> None:
    conversion = to_folder(write_lora(tmp_path / "x.safetensors"), tmp_path / "d")
    figures = json.loads((tmp_path / "d" / "convert.json").read_text())
    assert figures["deltas"]["modules"] == 264
    assert figures["outputs"]["errors"].keys() == {"unet", "text_encoder"}
    assert figures["result_model_hash"] == model_hash(conversion.path)
    assert str(tmp_path) not in json.dumps(figures)
    assert report_path(Path("a/b.safetensors")) == Path("a/b.convert.json")


def test_equal_files_convert_to_equal_bytes(tmp_path: Path) -> None:
    lora = write_lora(tmp_path / "x.safetensors", metadata={f"ss_{n}": str(n) for n in range(20)})
    first, second = (to_folder(lora, tmp_path / name).path for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    assert report_path(first).read_bytes() == report_path(second).read_bytes()


def test_diffusers_own_reading_of_the_kohya_file_gives_the_same_unet_and_text_encoder(
    tiny_base: BaseFile, tmp_path: Path
) -> None:
    """The oracle: diffusers' loader of Kohya files, which shares no code with ours."""
    import torch

    from brushset.bases.load import load_pipeline

    lora = write_lora(tmp_path / "x.safetensors")
    conversion = to_folder(lora, tmp_path / "adapter", verify=False)
    answers = []
    for path in (lora, conversion.path):
        pipeline = load_pipeline(tiny_base)
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name="x")
        pipeline.set_adapters(["x"], [0.8])
        text = pipeline.text_encoder(torch.arange(77)[None]).last_hidden_state
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        answers.append((text, pipeline.unet(latents, 500, text).sample))
    for kohya, ours in zip(*answers, strict=True):
        assert (kohya - ours).norm() <= 1e-6 * kohya.norm()


@pytest.mark.slow
@pytest.mark.parametrize("to", ["kohya", "diffusers"])
@pytest.mark.parametrize(
    "name", ["catundchat__pytorch_lora_weights.safetensors", "cloneofsimo__analog_svd_rank4.safetensors"]
)
def test_real_files_convert_at_full_size(name: str, to: Any, tmp_path: Path) -> None:
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not there")
    conversion = convert_adapter(read_adapter(SHARED / name), to, tmp_path / WEIGHT_NAME)
    assert isinstance(conversion.outputs, OutputCheck)
    assert conversion.outputs.worst <= 1e-5
    assert isinstance(read_adapter(conversion.path), AdapterFile)


def test_the_stage_leaves_a_folder_and_says_how_equal_it_is(tmp_path: Path) -> None:
    run = RunPaths(tmp_path / "cartoon" / "run")
    run.weights.mkdir(parents=True)
    write_lora(run.weights / "cartoon.safetensors")
    trained = Trained.model_construct(
        weights="weights/cartoon.safetensors", weights_sha256="", checkpoints=(), epochs=1
    )  # fmt: skip
    notes: list[object] = []
    spec = StyleSpec(name="cartoon", trigger="cartoonstyle")
    workdir = run.workdir("convert")
    context = StageContext(
        spec, run, workdir, lambda _event, **fields: notes.append(fields["text"]), {Trained: trained}, None
    )
    adapter = STAGE.run(context)
    assert (adapter.path, adapter.modules) == ("adapter", 264)
    assert adapter.max_relative_error <= 1e-6
    assert sorted(path.name for path in workdir.iterdir()) == ["convert.json", WEIGHT_NAME]
    assert "264 modules" in str(notes)
