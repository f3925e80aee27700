from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from lora_files import write_lora

from brushset.bases.configs import SD15
from brushset.errors import EnvironmentProblem, UsageError
from brushset.lora.metadata import (
    legacy_hash,
    model_hash,
    read_metadata,
    rewrite_metadata,
    window_hash,
    with_hashes,
)
from brushset.lora.save import adapter_bytes, save_adapter

METADATA = {"ss_output_name": "cartoon", "ss_network_dim": "4", "modelspec.title": 'a "title" — ü'}


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    return write_lora(tmp_path / "cartoon.safetensors", metadata=METADATA, dtype="bfloat16")


def tensor_bytes(path: Path) -> bytes:
    content = path.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


def sd_scripts_hashes(path: Path) -> tuple[str, str]:
    """As library/train_util.py computes them when it saves (precalculate_safetensors_hashes), Apache-2.0."""
    from safetensors.torch import load_file, save

    kept = {key: value for key, value in read_metadata(path).items() if key.startswith("ss_")}
    content = save(load_file(path), kept)
    whole = hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()
    return whole, hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]


def test_metadata_is_read_as_written(lora: Path) -> None:
    assert read_metadata(lora) == METADATA


def test_hashes_are_those_of_sd_scripts(lora: Path, tmp_path: Path) -> None:
    large = write_lora(tmp_path / "large.safetensors", metadata=METADATA, architecture=SD15, dim=2)
    for path in (lora, large):
        assert (model_hash(path), legacy_hash(path)) == sd_scripts_hashes(path)
    assert lora.stat().st_size < 0x100000
    assert legacy_hash(lora) == "e3b0c442"
    assert legacy_hash(large) != "e3b0c442"


def test_rewriting_keeps_every_tensor_byte_and_the_hash(lora: Path, tmp_path: Path) -> None:
    other = tmp_path / "below" / "other.safetensors"
    before = model_hash(lora)
    rewrite_metadata(lora, other, {"ss_output_name": "other", "ss_note": "ü" * 100})
    assert tensor_bytes(other) == tensor_bytes(lora)
    assert model_hash(other) == before
    assert read_metadata(other) == {"ss_output_name": "other", "ss_note": "ü" * 100}


def test_rewriting_in_place_leaves_a_file_that_loads(lora: Path) -> None:
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file

    before = load_file(lora)
    rewrite_metadata(lora, lora, with_hashes(lora))
    after = load_file(lora)
    assert all(torch.equal(before[name], after[name]) for name in before)
    with safe_open(lora, "pt") as file:
        assert file.metadata() == {
            **METADATA,
            "sshs_model_hash": model_hash(lora),
            "sshs_legacy_hash": legacy_hash(lora),
        }


@pytest.mark.parametrize("metadata", [{}, METADATA])
def test_the_header_starts_as_a1111_wants_it_and_tensors_stay_aligned(lora: Path, metadata: dict[str, str]) -> None:
    rewrite_metadata(lora, lora, metadata)
    content = lora.read_bytes()
    assert content[8:10] == b'{"'
    assert int.from_bytes(content[:8], "little") % 8 == 0
    assert read_metadata(lora) == metadata


@pytest.mark.parametrize("value", ["", None, 3])
def test_values_that_uis_trip_over_are_refused(lora: Path, value: object) -> None:
    with pytest.raises(UsageError, match="ss_x"):
        rewrite_metadata(lora, lora, {"ss_x": value})  # type: ignore[dict-item]
    assert read_metadata(lora) == METADATA


def test_a_target_that_cannot_be_written_leaves_the_old_file(lora: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    with pytest.raises(EnvironmentProblem, match="cannot be written"):
        rewrite_metadata(lora, blocked / "x.safetensors", METADATA)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cartoon.safetensors", "file"]


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    path.write_bytes(b"PK\x03\x04 a zip")
    with pytest.raises(UsageError, match="a pickle"):
        read_metadata(path)


def test_saving_gives_the_bytes_of_the_safetensors_library_but_for_the_order_of_metadata(tmp_path: Path) -> None:
    import torch
    from lora_files import lora_state
    from safetensors.torch import save

    state = {name: tensor.bfloat16() for name, tensor in lora_state(architecture=SD15, dim=2).items()}
    state["lora_unet_conv_in.lora_up.weight"] = torch.ones(3, 2)  # another dtype goes first, whatever its name
    path = tmp_path / "x.safetensors"
    digest = save_adapter(path, state, {"ss_z": "1", "modelspec.title": "ü", "ss_a": "2"})
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    theirs = save(state, {"ss_a": "2"})
    assert tensor_bytes(path) == theirs[8 + int.from_bytes(theirs[:8], "little") :]
    told = read_metadata(path)
    assert list(told) == sorted(told)
    assert (told["sshs_model_hash"], told["sshs_legacy_hash"]) == (model_hash(path), legacy_hash(path))
    assert sd_scripts_hashes(path) == (told["sshs_model_hash"], told["sshs_legacy_hash"])


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    from lora_files import lora_state

    state, told = lora_state(), {f"ss_{number}": str(number) for number in range(30)}
    backwards = dict(reversed(state.items())), dict(reversed(told.items()))
    assert adapter_bytes(state, told) == adapter_bytes(*backwards)
    assert adapter_bytes(state, told)[8:10] == b'{"'


def test_the_old_hash_of_any_file_is_of_64_kib_at_1_mib(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(bytes(range(256)) * 5000)
    assert window_hash(path) == hashlib.sha256(path.read_bytes()[0x100000:0x110000]).hexdigest()[:8]
