from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lora_files import lora_state, write_lora

from brushset.bases.configs import SD15
from brushset.errors import VerificationFailed
from brushset.lora.verify import verify_lora

State = dict[str, Any]
FC1 = "lora_te_text_model_encoder_layers_0_mlp_fc1"


def save(state: State, path: Path) -> Path:
    from safetensors.torch import save_file

    save_file(state, path)
    return path


def verify_narrow(path: Path) -> Any:
    return verify_lora(path, dim=4, alpha=2.0, text_encoder=True, narrow=True)


def drop(name: str) -> Callable[[State], None]:
    return lambda state: state.pop(name)


def replace(name: str, change: Callable[[Any], Any]) -> Callable[[State], None]:
    return lambda state: state.update({name: change(state[name])})


def zero(part: str) -> Callable[[State], None]:
    def change(state: State) -> None:
        for name in state:
            if name.startswith(part) and "lora_up" in name:
                state[name].zero_()

    return change


def te1(state: State) -> None:
    for name in [name for name in state if name.startswith("lora_te_")]:
        state[name.replace("lora_te_", "lora_te1_")] = state.pop(name)


def fill(value: float) -> Callable[[Any], Any]:
    def change(tensor: Any) -> Any:
        tensor.flatten()[0] = value
        return tensor

    return change


def test_a_good_file_is_described(tmp_path: Path) -> None:
    state = lora_state()
    facts = verify_narrow(save(state, tmp_path / "good.safetensors"))
    ups = sum(float(tensor.square().sum()) for name, tensor in state.items() if "lora_up" in name) ** 0.5
    assert (facts.modules, facts.tensors, facts.dim, facts.alpha, facts.dtype) == (264, 792, 4, 2.0, "F32")
    assert facts.up_norm == pytest.approx(ups)
    assert 0 < facts.max_abs < 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_an_alpha_rounded_by_the_files_dtype_passes(dtype: str, tmp_path: Path) -> None:
    path = write_lora(tmp_path / "x.safetensors", dtype=dtype, alpha=0.3)
    assert verify_lora(path, dim=4, alpha=0.3, text_encoder=True, narrow=True).modules == 264


def test_full_widths_are_held_to_full_shapes(tmp_path: Path) -> None:
    path = write_lora(tmp_path / "full.safetensors", architecture=SD15, dim=2)
    assert verify_lora(path, dim=2, alpha=2.0, text_encoder=True).tensors == 792
    narrow = write_lora(tmp_path / "narrow.safetensors", dim=2)
    with pytest.raises(VerificationFailed, match="wrong shape"):
        verify_lora(narrow, dim=2, alpha=2.0, text_encoder=True)


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (drop(f"{FC1}.alpha"), f"1 of 792 tensors are missing: {FC1}.alpha"),
        (drop(f"{FC1}.lora_up.weight"), "1 of 792 tensors are missing"),
        (te1, "216 of 792 tensors are missing: .* and 213 more\n.*216 tensors do not belong"),
        (replace(f"{FC1}.lora_up.weight", lambda up: up.T.contiguous()), "1 modules have the wrong rank"),
        (replace(f"{FC1}.lora_down.weight", lambda down: down[:2].contiguous()), "1 modules have the wrong rank"),
        (replace(f"{FC1}.alpha", lambda alpha: alpha * 2), f"another alpha than 2: {FC1}.alpha = 4"),
        (replace(f"{FC1}.lora_up.weight", fill(float("nan"))), "1 of 792 tensors hold NaN"),
        (replace(f"{FC1}.lora_down.weight", fill(float("inf"))), "1 of 792 tensors hold NaN or infinity"),
        (zero("lora_"), "all 192 up matrices of the unet are zero"),
        (zero("lora_te_"), "all 72 up matrices of the text_encoder are zero"),
    ],
)
def test_each_fault_is_found_and_named(change: Callable[[State], None], finding: str, tmp_path: Path) -> None:
    state = lora_state()
    change(state)
    path = save(state, tmp_path / "bad.safetensors")
    with pytest.raises(VerificationFailed, match=finding) as caught:
        verify_narrow(path)
    assert all(line.startswith(str(path)) for line in str(caught.value).splitlines())


def test_one_zero_module_among_trained_ones_passes(tmp_path: Path) -> None:
    state = lora_state()
    state[f"{FC1}.lora_up.weight"].zero_()
    assert verify_narrow(save(state, tmp_path / "x.safetensors")).modules == 264


def test_another_number_of_modules_than_264_is_refused(tmp_path: Path) -> None:
    import torch

    state = lora_state()
    state["lora_unet_down_blocks_0_resnets_0_conv1.alpha"] = torch.tensor(2.0)
    with pytest.raises(VerificationFailed, match="1 tensors do not belong"):
        verify_narrow(save(state, tmp_path / "x.safetensors"))


def test_a_text_encoder_that_was_not_asked_for_is_refused(tmp_path: Path) -> None:
    path = write_lora(tmp_path / "x.safetensors")
    with pytest.raises(VerificationFailed, match="216 tensors do not belong"):
        verify_lora(path, dim=4, alpha=2.0, text_encoder=False, narrow=True)


@pytest.mark.parametrize("content", [b"", b"\x80\x02}.", b"not a file of tensors"])
def test_an_unreadable_file_is_a_failed_verification(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(VerificationFailed, match=r"x\.safetensors"):
        verify_narrow(path)
    with pytest.raises(VerificationFailed, match="no such file"):
        verify_narrow(tmp_path / "missing.safetensors")
