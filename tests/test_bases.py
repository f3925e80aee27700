from __future__ import annotations

import json
import shutil
import struct
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from ldm_checkpoint import write_single_file

from brushset.bases.header import MAX_HEADER_BYTES, read_header
from brushset.bases.resolve import base_sha256, resolve_base
from brushset.errors import EnvironmentProblem, UsageError
from brushset.files import sha256_file
from brushset.log import silent
from brushset.records import BaseFile

PARTS = ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model")


def emit(event: str, /, **fields: object) -> None:
    """Nobody listens."""


def write_safetensors(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Path:
    """A file that holds zeros of these shapes, as 1-byte numbers."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 1
        for side in shape:
            size *= side
        header[name] = {"dtype": "I8", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(offset))
    return path


@pytest.fixture(scope="module")
def checkpoint(tiny_base: BaseFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_single_file(Path(tiny_base.path), tmp_path_factory.mktemp("single") / "tiny model.safetensors")


@pytest.fixture
def folder(tiny_base: BaseFile, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base.path, tmp_path / "model"))


def in_hub_cache(source: Path, root: Path, model: str) -> None:
    """Lays a model folder out as huggingface_hub keeps what it fetched."""
    repository = root / f"models--{model.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(source, repository / "snapshots" / ("0" * 40))


def test_a_random_model_is_named_random_and_narrow(tiny_base: BaseFile) -> None:
    assert (tiny_base.random, tiny_base.narrow, tiny_base.kind) == (True, True, "folder")


def test_a_random_model_stays_random_when_given_as_a_folder(folder: Path, tiny_base: BaseFile) -> None:
    found = resolve_base(str(folder), None, emit)
    assert (found.random, found.sha256, found.path) == (True, tiny_base.sha256, str(folder))


def test_a_folder_of_another_origin_is_not_called_random(folder: Path) -> None:
    (folder / "made_by_brushset.json").unlink()
    assert not resolve_base(str(folder), None, emit).random


def test_a_single_file_is_hashed_and_its_width_seen(checkpoint: Path) -> None:
    found = resolve_base(str(checkpoint), None, emit)
    assert (found.kind, found.narrow, found.sha256) == ("single-file", True, sha256_file(checkpoint))


def test_a_single_file_loads_to_the_very_weights_of_its_folder(checkpoint: Path, tiny_base: BaseFile) -> None:
    import torch

    from brushset.bases.load import load_components

    folder = load_components(tiny_base)
    single = load_components(resolve_base(str(checkpoint), None, emit))
    for part in ("unet", "vae", "text_encoder"):
        expected, found = getattr(folder, part).state_dict(), getattr(single, part).state_dict()
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected), part


def test_only_the_parts_asked_for_are_loaded_and_in_the_dtype_asked_for(checkpoint: Path, tiny_base: BaseFile) -> None:
    import torch

    from brushset.bases.load import load_components

    for base in (tiny_base, resolve_base(str(checkpoint), None, emit)):
        parts = load_components(base, dtype=torch.bfloat16, parts=("unet", "tokenizer"))
        assert (parts.vae, parts.text_encoder) == (None, None)
        assert parts.unet.dtype == torch.bfloat16
        assert not parts.unet.training
        assert not any(parameter.requires_grad for parameter in parts.unet.parameters())
        assert parts.tokenizer("a cat").input_ids == [49406, 320, 2368, 49407]


def test_loading_prints_nothing(checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from brushset.bases.load import load_pipeline

    load_pipeline(resolve_base(str(checkpoint), None, emit))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("shapes", "what"),
    [
        ({"conditioner.embedders.1.model.ln_final.weight": (4,), "model.diffusion_model.x": (1,)}, "SDXL"),
        ({"model.diffusion_model.double_blocks.0.img_attn.proj.weight": (4, 4)}, "Flux"),
        ({"double_blocks.0.img_attn.proj.weight": (4, 4)}, "Flux"),
        ({"model.diffusion_model.joint_blocks.0.x_block.attn.proj.weight": (4, 4)}, "SD 3"),
        ({"cond_stage_model.model.ln_final.weight": (4,)}, "SD 2"),
        ({"lora_unet_mid_block_attentions_0_proj_in.alpha": ()}, "a LoRA"),
        ({"model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3)}, "VAE, text encoder is missing"),
        ({"down_blocks.0.resnets.0.conv1.weight": (4, 4, 3, 3)}, "a UNet alone"),
        ({"some.weight": (1,)}, "UNet, VAE, text encoder is missing"),
    ],
)
def test_other_families_are_refused_by_their_header(
    shapes: dict[str, tuple[int, ...]], what: str, tmp_path: Path
) -> None:
    path = write_safetensors(tmp_path / "other.safetensors", shapes)
    with pytest.raises(UsageError, match=what) as caught:
        resolve_base(str(path), None, emit)
    assert str(path) in str(caught.value)
    assert "fix:" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("width", "channels", "what"), [(1024, 4, "SD 2"), (768, 9, "9 input channels")])
def test_a_checkpoint_of_other_shapes_is_refused(width: int, channels: int, what: str, tmp_path: Path) -> None:
    shapes = {
        "model.diffusion_model.input_blocks.0.0.weight": (320, channels, 3, 3),
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, width),
        "first_stage_model.decoder.conv_out.weight": (3, 128, 3, 3),
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (8, 8),
    }
    with pytest.raises(UsageError, match=what):
        resolve_base(str(write_safetensors(tmp_path / "x.safetensors", shapes)), None, emit)


@pytest.mark.parametrize(
    "key", ["lora_te_x.lora_down.weight", "unet.x.lora.up.weight", "down_blocks.0.x.lora.up.weight"]
)
def test_a_lora_given_as_base_is_called_a_lora(key: str, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    path = tmp_path / "style.safetensors"
    save_file({key: torch.zeros(4, 4)}, path)
    with pytest.raises(UsageError, match="a LoRA, not a base model"):
        resolve_base(str(path), None, silent)


@pytest.mark.parametrize("name", ["model.ckpt", "model.safetensors"])
def test_a_pickle_is_refused_by_content_whatever_its_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", "cos\nsystem\n(S'touch owned'\ntR.")
    with pytest.raises(UsageError, match="a pickle"):
        resolve_base(str(path), None, emit)
    path.write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(UsageError, match="a pickle"):
        resolve_base(str(path), None, emit)


@pytest.mark.parametrize("length", [0x80, 0x0280, 0x4B50])
def test_a_header_whose_length_looks_like_a_pickle_is_read(length: int, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}".ljust(length))
    assert read_header(path).data_offset == 8 + length


def test_no_zip_can_pass_for_safetensors() -> None:
    assert int.from_bytes(b"PK\x03\x04", "little") > MAX_HEADER_BYTES


def test_safetensors_under_another_name_is_refused_since_sd_scripts_would_unpickle_it(
    checkpoint: Path, tmp_path: Path
) -> None:
    renamed = Path(shutil.copy(checkpoint, tmp_path / "model.ckpt"))
    with pytest.raises(UsageError, match=r"rename it to model\.safetensors"):
        resolve_base(str(renamed), None, emit)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"abc",
        struct.pack("<Q", 1 << 60) + b"{}",
        struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{}",
        struct.pack("<Q", 2) + b"{]",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 2) + b"{}" + b"left over",
        struct.pack("<Q", 60) + b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}      ' + bytes(4),
        struct.pack("<Q", 60) + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,400]}}    ' + bytes(4),
        struct.pack("<Q", 60) + b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[4,0]}}     ' + bytes(4),
        struct.pack("<Q", 60) + b'{"__metadata__":{"a":1}}                                    ',
    ],
)
def test_a_broken_header_is_one_line_that_names_the_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"broken\.safetensors") as caught:
        read_header(path)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_cut_short_is_refused_before_it_is_loaded(checkpoint: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(checkpoint.read_bytes()[:-1000])
    with pytest.raises(UsageError, match="cut short"):
        resolve_base(str(cut), None, emit)


@pytest.mark.parametrize("model", ["./nothing", "nothing.safetensors", "org/model.ckpt", "nowhere", "/no/such/folder"])
def test_a_missing_path_says_what_a_base_model_may_be(model: str) -> None:
    with pytest.raises(UsageError, match="random:tiny"):
        resolve_base(model, None, emit)


def test_an_unknown_random_model_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="random:sd15, random:tiny"):
        resolve_base("random:sdxl", None, emit)


@pytest.mark.parametrize("part", PARTS)
def test_a_folder_that_lacks_a_part_is_refused_with_what_it_has(part: str, folder: Path) -> None:
    file = folder / f"{part}.safetensors"
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(UsageError, match=rf"without {part}\.safetensors \(found .*\.bin\)"):
        resolve_base(str(folder), None, emit)


@pytest.mark.parametrize(
    ("file", "change", "what"),
    [
        ("model_index.json", {"_class_name": "StableDiffusionXLPipeline"}, "StableDiffusionXLPipeline"),
        ("model_index.json", {"_class_name": "FluxPipeline"}, "FluxPipeline"),
        ("unet/config.json", {"cross_attention_dim": 1024}, "an SD 2 model"),
    ],
)
def test_a_folder_of_another_family_is_refused(file: str, change: dict[str, object], what: str, folder: Path) -> None:
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**content, **change}))
    with pytest.raises(UsageError, match=what):
        resolve_base(str(folder), None, emit)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"model_index\.json is missing"):
        resolve_base(str(tmp_path), None, emit)


def test_weights_under_the_half_precision_name_are_found(folder: Path, tiny_base: BaseFile) -> None:
    for part in PARTS:
        (folder / f"{part}.safetensors").rename(folder / f"{part}.fp16.safetensors")
    found = resolve_base(str(folder), None, emit)
    assert found.path != str(folder)
    assert found.sha256 == tiny_base.sha256
    assert (Path(found.path) / "tokenizer" / "merges.txt").is_file()
    assert resolve_base(str(folder), None, emit) == found


def test_an_id_in_the_hub_cache_is_found_offline(
    tiny_base: BaseFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_hub_cache(Path(tiny_base.path), tmp_path, "someone/their-model")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = resolve_base("someone/their-model", None, emit)
    assert found.sha256 == tiny_base.sha256
    assert found.name == "someone/their-model"
    assert str(tmp_path) in found.path


def test_an_id_of_another_family_is_refused_before_its_weights_are_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def snapshot(model: str, *, allow_patterns: list[str], **others: object) -> str:
        asked.append(allow_patterns)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "cross_attention_dim": 2048}))
    with pytest.raises(UsageError, match="SDXL"):
        resolve_base("someone/sdxl", "v1", emit)
    assert len(asked) == 1
    assert not any("safetensors" in pattern for pattern in asked[0])


def test_only_safetensors_configs_and_the_tokenizer_are_ever_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: set[str] = set()

    def snapshot(model: str, *, allow_patterns: list[str], **others: object) -> str:
        asked.update(allow_patterns)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    resolve_base("someone/model", None, emit)
    assert {Path(pattern).suffix for pattern in asked} == {".safetensors", ".json", ".txt"}


@pytest.mark.parametrize("what", ["nothing", "configs only"])
def test_an_id_that_is_not_cached_names_the_fix_offline(
    what: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    if what == "configs only":
        for part in PARTS:
            (folder / f"{part}.safetensors").unlink()
        in_hub_cache(folder, tmp_path / "hub", "someone/model")
    with pytest.raises(EnvironmentProblem, match="fix: go online") as caught:
        resolve_base("someone/model", None, emit)
    assert "\n" not in str(caught.value)


def test_the_hash_is_remembered_and_made_anew_when_the_file_changes(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copy(checkpoint, tmp_path / "copy.safetensors"))
    first = base_sha256(copy, emit)
    with monkeypatch.context() as without:
        without.setattr("brushset.bases.resolve.sha256_file", None)
        assert base_sha256(copy, emit) == first
    with copy.open("ab") as file:
        file.write(b"x")
    assert base_sha256(copy, emit) == sha256_file(copy) != first


def test_a_corrupt_note_of_a_hash_is_made_anew(checkpoint: Path, cache: Path) -> None:
    first = base_sha256(checkpoint, emit)
    for note in (cache / "hashes").glob("*.json"):
        note.write_text("{cut")
    assert base_sha256(checkpoint, emit) == first


def test_resolving_does_not_import_torch(tiny_base: BaseFile) -> None:
    import subprocess

    code = (
        "import sys; from brushset.bases.resolve import resolve_base\n"
        f"resolve_base({tiny_base.path!r}, None, lambda event, **fields: None)\n"
        "assert 'torch' not in sys.modules and 'diffusers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)
