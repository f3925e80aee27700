"""What a file is told to be, against numpy and torch on the whole ΔW; and why a LoRA does nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lora_files import (
    State,
    in_diffusers,
    in_peft,
    in_processors,
    locon_state,
    lora_state,
    modules_of,
    save,
    write_lora,
)

from brushset.bases.configs import SD15
from brushset.errors import UsageError
from brushset.files import sha256_file
from brushset.lora.diagnosis import Symptom, diagnose
from brushset.lora.inspection import block_of, inspect_file, training_facts, trigger_of
from brushset.lora.metadata import model_hash, rewrite_metadata, with_hashes

SHARED = Path(__file__).parent.parent.parent / "shared"
TOLD = {"ss_base_model_version": "sd_v1", "ss_v2": "False", "ss_network_alpha": "2.0", "ss_text_encoder_lr": "5e-05"}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_norms_are_those_of_the_product(dtype: str, tmp_path: Path) -> None:
    import torch

    state = {name: tensor.to(getattr(torch, dtype)) for name, tensor in locon_state().items()}
    facts = inspect_file(save(state, tmp_path / "x.safetensors"))
    wide = {name: tensor.double() for name, tensor in state.items()}
    for name, (_, _, down, up) in modules_of(wide).items():
        assert facts.modules[name].norm == pytest.approx((up.flatten(1) @ down.flatten(1)).norm().item(), rel=1e-9)
    assert facts.counts() == {"UNet": 192, "UNet convolutions": 85, "text encoder": 72}
    squares = sum(module.norm**2 for module in facts.modules.values())
    assert sum(norm**2 for norm in facts.blocks().values()) == pytest.approx(squares)


def test_blocks_stand_in_the_order_of_the_model(tmp_path: Path) -> None:
    blocks = inspect_file(save(locon_state(), tmp_path / "x.safetensors")).blocks()
    expected = [f"text {n}" for n in range(12)] + ["down 0", "down 1", "down 2", "down 3", "mid"]
    assert list(blocks) == [*expected, "up 0", "up 1", "up 2", "up 3"]
    assert block_of("lora_unet_conv_in") == "in/out"


def test_hashes(tmp_path: Path) -> None:
    path = write_lora(tmp_path / "x.safetensors", metadata=TOLD)
    rewrite_metadata(path, path, with_hashes(path))
    facts = inspect_file(path)
    assert facts.hash_right is True
    assert facts.hashes["AutoV2"] == sha256_file(path)[:10]
    assert facts.hashes["AutoV3"] == model_hash(path)[:12]
    rewrite_metadata(path, path, {**facts.metadata, "sshs_model_hash": "0" * 64})
    assert inspect_file(path).hash_right is False


def test_trigger_and_training_of_a_real_files_metadata() -> None:
    example = SHARED / "facts" / "sd15_lora_metadata_example.json"
    if not example.is_file():
        pytest.skip(f"{example} is not there")
    told = json.loads(example.read_text())
    assert trigger_of({**told, "modelspec.trigger_phrase": "x"}) == ("x", "modelspec.trigger_phrase")
    facts = training_facts(told)
    assert (facts["steps"], facts["base model"], facts["images"]) == ("2", "sd15", "4")
    assert "UNet rate" not in facts


def test_the_trigger_is_guessed_only_where_one_tag_leads() -> None:
    def tags(**counts: int) -> dict[str, str]:
        return {"ss_tag_frequency": json.dumps({"images": counts})}

    assert trigger_of(tags(cartoonstyle=9, cat=3))[0] == "cartoonstyle"
    assert trigger_of(tags(a=9, b=9)) == ("", "")
    for broken in ("", "[]", "{", '{"a": 3}', '{"a": {"b": "c"}}'):
        assert trigger_of({"ss_tag_frequency": broken}) == ("", "")


def test_inspection_imports_no_torch(tmp_path: Path) -> None:
    write_lora(tmp_path / "x.safetensors", dtype="bfloat16", metadata=TOLD)
    code = (
        "import sys; from pathlib import Path\n"
        "from brushset.lora.inspection import inspect_file, training_facts\n"
        "facts = inspect_file(Path(sys.argv[1])); training_facts(facts.metadata); facts.blocks()\n"
        "assert len(facts.modules) == 264\n"
        "assert not {'torch', 'diffusers', 'transformers', 'safetensors'} & sys.modules.keys()"
    )
    argv = [sys.executable, "-c", code, str(tmp_path / "x.safetensors")]
    subprocess.run(argv, check=True, cwd=Path(__file__).parent.parent)


def test_a_foreign_file_is_told_and_not_measured(tmp_path: Path) -> None:
    import torch

    path = save({"lora_te2_x.lora_down.weight": torch.zeros(4, 4)}, tmp_path / "x.safetensors")
    facts = inspect_file(path)
    assert (facts.family, facts.foreign, facts.modules) == ("SDXL", "a LoRA of SDXL", {})
    with pytest.raises(UsageError, match="no LoRA"):
        inspect_file(save({"x": torch.zeros(1)}, tmp_path / "y.safetensors"))


def levels(symptoms: list[Symptom]) -> dict[str, str]:
    return {symptom.what: symptom.level for symptom in symptoms}


def test_a_sound_file_has_nothing_broken(tmp_path: Path) -> None:
    path = write_lora(tmp_path / "x.safetensors", metadata=TOLD, architecture=SD15, dim=2, alpha=2.0)
    assert levels(diagnose(path)) == dict.fromkeys(["family", "layout", "strength", "alpha", "modules", "model"], "ok")


def scaled(factor: float, *, only: str = "lora_up") -> State:
    return {name: tensor * factor if only in name else tensor for name, tensor in lora_state().items()}


def one_nan() -> State:
    state = lora_state()
    state["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"][0, 0] = float("nan")
    return state


def half_dead() -> State:
    return {name: tensor * 0 if "lora_te" in name and "up" in name else tensor for name, tensor in lora_state().items()}


def te1() -> State:
    return {name.replace("lora_te_", "lora_te1_"): tensor for name, tensor in lora_state().items()}


def one_lost() -> State:
    return {
        name: tensor
        for name, tensor in lora_state().items()
        if not name.startswith("lora_unet_mid_block_attentions_0_proj_in.")
    }


def exchanged() -> State:
    names = {"lora_up": "lora_down", "lora_down": "lora_up"}
    kinds = {name: next((kind for kind in names if kind in name), "") for name in lora_state()}
    return {
        name.replace(kinds[name], names[kinds[name]]) if kinds[name] else name: tensor
        for name, tensor in lora_state().items()
    }


@pytest.mark.parametrize(
    ("state", "told", "what", "level", "says"),
    [
        (lambda: scaled(0), {}, "dead", "broken", "all 264 modules add nothing"),
        (half_dead, {}, "dead", "note", "72 of 264 modules add nothing"),
        (one_nan, {}, "values", "broken", "NaN or infinity in 1 of 264 modules: .*fc1"),
        (lambda: scaled(1e-6), {}, "strength", "broken", "too weak to see"),
        (lambda: scaled(1e4), {}, "strength", "broken", "264 modules outweigh the model"),
        (lambda: scaled(200, only="mid_block_attentions_0_proj_in.lora_up"), {}, "strength", "broken", "1 modules outweigh"),
        (lambda: lora_state(text_encoder=False), {}, "modules", "broken", "it was lost on the way"),
        (
            lambda: lora_state(text_encoder=False), {"ss_text_encoder_lr": "0"}, "modules", "note", "UNet alone",
        ),
        (one_lost, {}, "modules", "note", "UNet 191, text encoder 72: 1 of those that trainers write are missing: .*proj_in"),
        (exchanged, {}, "shapes", "broken", "up and down do not multiply in 78 of 264 modules"),
        (lambda: lora_state(alpha=4.0), {}, "alpha", "broken", "4 in the tensors, 2 in the metadata"),
        (lambda: scaled(0, only="alpha"), {}, "alpha", "broken", "ComfyUI applies nothing"),
        (te1, {}, "layout", "note", "lora_te1_"),
        (lambda: in_diffusers(lora_state()), {}, "layout", "note", "A1111 loads 0 of 264"),
        (lambda: in_diffusers(lora_state()), {}, "alpha", "note", "loses alpha"),
        (lambda: in_processors(lora_state(), prefix=""), {}, "layout", "broken", "attn-processors"),
        (lambda: in_peft(lora_state(), "unet"), {}, "layout", "broken", "peft"),
        (lora_state, {"ss_base_model_version": "sdxl_base_v1-0"}, "family", "broken", "metadata says sdxl_base"),
        (lora_state, {"ss_base_model_version": ""}, "family", "note", "Unknown"),
        (lora_state, {"sshs_model_hash": "0" * 64}, "hash", "note", "changed after training"),
        (lora_state, {}, "model", "note", "narrow random model"),
    ],
)  # fmt: skip
def test_reasons_why_a_lora_does_nothing(
    state: Any, told: dict[str, str], what: str, level: str, says: str, tmp_path: Path
) -> None:
    import re

    metadata = {key: value for key, value in {**TOLD, **told}.items() if value}
    symptoms = diagnose(save(state(), tmp_path / "x.safetensors", metadata))
    found = [each for each in symptoms if each.what == what and re.search(says, each.found)]
    assert found, symptoms
    assert found[0].level == level
    assert found[0].fix


def test_what_cannot_be_read_is_a_symptom_too(tmp_path: Path) -> None:
    import torch

    pickle = tmp_path / "x.safetensors"
    pickle.write_bytes(b"PK\x03\x04 a zip")
    assert "a pickle" in diagnose(pickle)[0].found
    sdxl = save({"lora_te2_x.lora_down.weight": torch.zeros(4, 4)}, tmp_path / "y.safetensors")
    assert diagnose(sdxl)[0].found == "a LoRA of SDXL"
    assert "no such file" in diagnose(tmp_path / "z.safetensors")[0].found


def test_the_unet_alone_is_right_where_it_was_asked_for(tmp_path: Path) -> None:
    path = write_lora(tmp_path / "x.safetensors", text_encoder=False, metadata=TOLD)
    assert levels(diagnose(path, text_encoder=False))["modules"] == "ok"
