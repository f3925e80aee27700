"""Packages that are broken on purpose, a kind each: every one is refused, with a line of its own that names the file."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_case import linked_copy, make_run, raw_parts, report_of, run_export
from lora_files import in_diffusers, in_peft
from PIL import Image
from safetensors.numpy import load_file, save

from brushset.errors import UsageError
from brushset.lora.metadata import model_hash, read_metadata, with_hashes
from webui_export.verify import verify_package
from webui_export.verify.lora import LoraCheck, check_lora

LORA = "a1111/models/Lora/cartoon.safetensors"
CARD = "a1111/models/Lora/cartoon.json"
PREVIEW = "a1111/models/Lora/cartoon.preview.png"
FLOW = "comfyui/user/default/workflows/cartoon.json"
MIX_FLOW = "comfyui/user/default/workflows/cartoon_with_anime.json"
API = "comfyui/api/cartoon.api.json"
PICTURE = "comfyui/drag_in/cartoon.png"
Break = Callable[[Path], object]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole package of two styles and their mix."""
    root = tmp_path_factory.mktemp("whole")
    make_run(root / "runs", "anime")
    run = make_run(root / "runs", "cartoon")
    run_export(run, report_of("cartoon", "anime"), root / "export")
    return root / "export"


@pytest.fixture
def package(whole: Path, tmp_path: Path) -> Path:
    return linked_copy(whole, tmp_path / "package")


@pytest.fixture(scope="module", autouse=True)
def same_file_looked_at_once() -> Iterator[None]:
    """A hard link of a file that another test has looked at is not looked at again: a quarter of a second each."""
    kept: dict[tuple[int, int, str], LoraCheck] = {}

    def check(file: Path) -> LoraCheck:
        status = file.stat()
        key = (status.st_ino, status.st_mtime_ns, file.name)
        if key not in kept:
            kept[key] = check_lora(file)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("webui_export.verify.package.check_lora", check)
        yield


def put(path: Path, content: bytes | str) -> None:
    """Puts another file in place of one that may be a hard link."""
    path.unlink(missing_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def with_header(change: Callable[[dict[str, str]], object], *, indent: int | None = None) -> Break:
    """Changes metadata, and leaves every hash as it is."""

    def work(root: Path) -> None:
        header, data = raw_parts(root / LORA)
        content = json.loads(header)
        change(content["__metadata__"])
        text = json.dumps(content, separators=(",", ":"), indent=indent).encode()
        put(root / LORA, struct.pack("<Q", len(text)) + text + data)

    return work


def says(key: str, value: str) -> Break:
    return with_header(lambda metadata: metadata.update({key: value}))


def with_tensors(change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> Break:
    """Changes tensors, with every hash right for them."""

    def work(root: Path) -> None:
        state = load_file(root / LORA)
        state = change(state) or state
        metadata = read_metadata(root / LORA)
        put(root / LORA, save(state, metadata))
        digest = model_hash(root / LORA)
        put(root / LORA, save(state, {**metadata, "modelspec.hash_sha256": f"0x{digest}"}))
        put(root / LORA, save(state, with_hashes(root / LORA)))

    return work


def renamed(old: str, new: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda state: {name.replace(old, new): tensor for name, tensor in state.items()}


def in_numpy(layout: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def change(state: dict[str, Any]) -> dict[str, Any]:
        import torch

        tensors = {name: torch.from_numpy(array.copy()) for name, array in state.items()}
        return {name: tensor.contiguous().numpy() for name, tensor in layout(tensors).items()}

    return change


def one_key(kind: str) -> str:
    return f"lora_unet_mid_block_attentions_0_proj_in.{kind}"


def with_nan(state: dict[str, Any]) -> None:
    state[one_key("lora_up.weight")] = state[one_key("lora_up.weight")] * float("nan")


def with_zeros(state: dict[str, Any]) -> None:
    state[one_key("lora_up.weight")] = state[one_key("lora_up.weight")] * 0


def with_one_shape(state: dict[str, Any]) -> None:
    state[one_key("lora_down.weight")] = state[one_key("lora_down.weight")][:, :-1].copy()


def doubled_alpha(state: dict[str, Any]) -> dict[str, Any]:
    return {name: np.asarray(tensor * 2) if name.endswith(".alpha") else tensor for name, tensor in state.items()}


def without(pattern: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda state: {name: tensor for name, tensor in state.items() if not re.search(pattern, name)}


def with_json(file: str, change: Callable[[Any], object]) -> Break:
    def work(root: Path) -> None:
        content = json.loads((root / file).read_text())
        change(content)
        put(root / file, json.dumps(content))

    return work


def card(key: str, value: object) -> Break:
    return with_json(CARD, lambda content: content.update({key: value}))


def sampler(content: Any) -> Any:
    return next(node for node in content["nodes"] if node["type"] == "KSampler")


def without_seventh_widget(content: Any) -> None:
    sampler(content)["widgets_values"].pop(1)


def loader_of(content: Any) -> Any:
    return next(node for node in content.values() if node["class_type"] == "LoraLoader")["inputs"]


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    return Image.effect_noise((width, height), 120).convert(mode)


def put_picture(file: str, picture: Image.Image, kind: str = "PNG") -> Break:
    def work(root: Path) -> None:
        (root / file).unlink()
        picture.save(root / file, kind)

    return work


def second_of_its_name(root: Path) -> None:
    folder = root / "a1111/models/Lora/old"
    folder.mkdir()
    for suffix in ("safetensors", "json", "preview.png"):
        (folder / f"cartoon.{suffix}").hardlink_to(root / f"a1111/models/Lora/cartoon.{suffix}")


def called(stem: str) -> Break:
    return lambda root: (root / LORA).rename(root / LORA.replace("cartoon.", f"{stem}."))


def linked(root: Path) -> None:
    target = root / "hub/cartoon.safetensors"
    target.rename(root.parent / "elsewhere.safetensors")
    target.symlink_to(root.parent / "elsewhere.safetensors")


KINDS: dict[str, tuple[Break, str]] = {
    # the file
    "cut short": (lambda r: put(r / LORA, (r / LORA).read_bytes()[:-100]), f"{LORA}: .*cut short or damaged"),
    "a pickle": (lambda r: put(r / LORA, b"PK\x03\x04" + b"\0" * 90), f"{LORA}: a pickle .* runs code when loaded"),
    "header pretty-printed": (with_header(dict.copy, indent=1), f"{LORA}: its header starts with .* A1111 reads only"),
    "header of 1 MiB": (says("ss_training_comment", "x" * (1 << 20)), f"{LORA}: its header has 1[0-9]+ bytes: ComfyUI shows none"),
    "value None": (says("ss_clip_skip", "None"), f"{LORA}: 1 header values are empty or None.*ss_clip_skip"),
    "modelspec not whole": (with_header(lambda m: m.pop("modelspec.license")), f"{LORA}: its header lacks modelspec.license"),
    "architecture of SDXL": (says("modelspec.architecture", "stable-diffusion-xl-v1-base/lora"), f"{LORA}: modelspec.architecture is"),
    "base version of SDXL": (says("ss_base_model_version", "sdxl_base_v1-0"), f"{LORA}: ss_base_model_version is .* A1111 hides it"),
    "says SD 2": (says("ss_v2", "True"), f"{LORA}: ss_v2 is .* A1111 takes it for SD 2"),
    "hash of A1111 wrong": (says("sshs_model_hash", "0" * 64), f"{LORA}: sshs_model_hash is 00000000000000…"),
    "hash of ModelSpec wrong": (says("modelspec.hash_sha256", "0x" + "0" * 64), f"{LORA}: modelspec.hash_sha256 is"),
    "legacy hash wrong": (says("sshs_legacy_hash", "deadbeef"), f"{LORA}: sshs_legacy_hash is deadbeef"),
    "alias of another file": (says("ss_output_name", "last-000004"), f'{LORA}: ss_output_name is "last-000004"'),
    "weight no number": (says("modelspec.lora_default_weight", "strong"), f'{LORA}: modelspec.lora_default_weight is "strong"'),
    "date no date": (says("modelspec.date", "yesterday"), f'{LORA}: modelspec.date is "yesterday"'),
    "thumbnail no JPEG": (says("modelspec.thumbnail", "data:image/jpeg;base64,AAAA"), f"{LORA}: modelspec.thumbnail is no picture"),
    "trigger not in the captions": (
        says("ss_tag_frequency", '{"images": {"cartoonstyle": 2, "a cat": 4}}'), f'{LORA}: the trigger "cartoonstyle" is in 50% of'
    ),
    "name of A1111's own": (called("none"), 'none.safetensors: A1111 cannot call a LoRA "none"'),
    "name with a dot and colon": (called("car.toon"), 'car.toon.safetensors: A1111 cannot call a LoRA "car.toon"'),
    "two of one name": (second_of_its_name, "Lora/old/cartoon.safetensors: is called like .*A1111 shows only one"),
    # its tensors
    "text encoder under te1": (with_tensors(renamed("lora_te_", "lora_te1_")), f"{LORA}: InvokeAI drops 72 modules .*silently"),
    "diffusers' keys": (with_tensors(in_numpy(in_diffusers)), f"{LORA}: A1111 drops 528 of 528 tensors silently"),
    "PEFT's keys": (with_tensors(in_numpy(lambda s: in_peft(s, "unet"))), f"{LORA}: InvokeAI raises Unsupported lora format"),
    "no alpha": (with_tensors(without(r"\.alpha$")), f"{LORA}: 264 modules have no alpha"),
    "another alpha": (with_tensors(doubled_alpha), f"{LORA}: ss_network_alpha is 1, alpha in 264 modules another, such as 2"),
    "another rank": (says("ss_network_dim", "32"), f"{LORA}: ss_network_dim is 32, the tensors' rank 2"),
    "NaN": (with_tensors(with_nan), f"{LORA}: 1 modules hold NaN or infinity: lora_unet_mid_block_attentions_0_proj_in"),
    "dead module": (with_tensors(with_zeros), f"{LORA}: 1 of 264 modules add nothing"),
    "wrong shape": (with_tensors(with_one_shape), f"{LORA}: A1111 cannot add 1 modules to their layers"),
    "wrong shape, in ComfyUI": (with_tensors(with_one_shape), f"{LORA}: ComfyUI: ERROR lora when sampling, 1 modules"),
    "half a module": (with_tensors(without(re.escape(one_key("lora_up")))), f"{LORA}: InvokeAI raises Unsupported lora format at 1 modules"),
    "module missing": (with_tensors(without(re.escape(one_key("")))), f"{LORA}: 1 of the UNet's 192 modules are missing"),
    "a key too many": (
        with_tensors(lambda s: {**s, "lora_unet_extra.alpha": s[one_key("alpha")]}), f"{LORA}: ComfyUI: lora key not loaded, 1 of 793"
    ),
    "of SDXL": (with_tensors(renamed("transformer_blocks_0", "transformer_blocks_9")), f"{LORA}: it is a LoRA of SDXL"),
    "a LoHa": (with_tensors(renamed("lora_down.weight", "hada_w1_a")), f"{LORA}: it is a LoHa"),
    "narrow without a word": (with_header(lambda m: m.pop("brushset.widths")), f"{LORA}: InvokeAI takes it for another model: its text width is 32"),
    # beside it
    "card missing": (lambda r: (r / CARD).unlink(), "Lora/cartoon.json: is missing"),
    "card no JSON": (lambda r: put(r / CARD, "{"), "Lora/cartoon.json: is no JSON object"),
    "card with another key": (card("activation_text", "x"), "cartoon.json: lacks or does not know the keys activation_text"),
    "card's weight as text": (card("preferred weight", "0.8"), "cartoon.json: \"preferred weight\" is '0.8', where a number belongs"),
    "card's weight 0": (card("preferred weight", 0), 'cartoon.json: "preferred weight" is 0: 0 switches it off'),
    "card's weight another": (card("preferred weight", 1.2), 'cartoon.json: "preferred weight" is 1.2, the file says 0.8'),
    "card's trigger another": (card("activation text", "animestyle"), "cartoon.json: \"activation text\" is 'animestyle'"),
    "card of SDXL": (card("sd version", "SDXL"), "cartoon.json: \"sd version\" is 'SDXL'"),
    "preview of 1 MB": (put_picture(PREVIEW, Image.merge("RGB", [noise(512, 768, "L") for _ in range(3)])), "cartoon.preview.png: has 1[0-9]{6} bytes"),
    "preview of another shape": (put_picture(PREVIEW, noise(700, 300)), "cartoon.preview.png: is 700×300"),
    "preview a JPEG": (put_picture(PREVIEW, noise(64, 64), "JPEG"), "cartoon.preview.png: is JPEG by content"),
    "preview no picture": (lambda r: put(r / PREVIEW, b"nothing"), "cartoon.preview.png: is no picture"),
    "preview of nothing": (
        lambda r: (r / PREVIEW).rename(r / PREVIEW.replace("cartoon", "other")), "Lora/other.preview.png: belongs to no LoRA"
    ),
    "a caption beside": (lambda r: put(r / LORA.replace("safetensors", "txt"), "a cat"), "cartoon.txt: .* A1111 takes it for its description"),
    "another's caption beside": (lambda r: put(r / "a1111/models/Lora/0001.txt", "a cat"), "0001.txt: .* takes it for a caption"),
    "a link": (linked, "hub/cartoon.safetensors: is a link"),
    # workflows
    "names a file that is not there": (
        lambda r: (r / "comfyui/models/loras/anime.safetensors").unlink(), "api/cartoon_with_anime.api.json: names anime.safetensors, which is not in"
    ),
    "prompt without trigger": (
        with_json(API, lambda c: c["3"]["inputs"].update(text="a girl")), f'{API}: its prompt has no "cartoonstyle"'
    ),
    "KSampler of six widgets": (with_json(FLOW, without_seventh_widget), f"{FLOW}: node 6: KSampler has 7 widgets, and 6 values"),
    "link to nowhere": (with_json(FLOW, lambda c: c["links"][0].__setitem__(3, 99)), f"{FLOW}: link 1 goes from 1:0 to 99:0"),
    "link of another type": (with_json(FLOW, lambda c: c["links"][0].__setitem__(5, "CLIP")), f"{FLOW}: link 1 is CLIP from MODEL"),
    "link told at one end": (
        with_json(FLOW, lambda c: c["nodes"][0]["outputs"][0].update(links=[])), f"{FLOW}: link 1 is not told at both its ends"
    ),
    "link gone": (with_json(FLOW, lambda c: c["links"].pop(0)), f"{FLOW}: 2 slots tell of links that are not there"),
    "counter behind": (with_json(FLOW, lambda c: c.update(last_node_id=3)), f"{FLOW}: last_node_id 3 is not the largest"),
    "a node of others": (with_json(FLOW, lambda c: c["nodes"][1].update(type="Efficient Loader")), f"{FLOW}: node 2: Efficient Loader is no node"),
    "another version": (with_json(FLOW, lambda c: c.update(version=1)), f"{FLOW}: version: "),
    "no JSON": (lambda r: put(r / MIX_FLOW, "{"), f"{MIX_FLOW}: the whole: "),
    "forms differ": (with_json(API, lambda c: loader_of(c).update(strength_model=0.3)), f"{API}: is another workflow than"),
    "API input missing": (with_json(API, lambda c: loader_of(c).pop("strength_clip")), f"{API}: node 2: LoraLoader takes clip, lora_name"),
    "API link of a wrong slot": (with_json(API, lambda c: loader_of(c).update(clip=["1", 2])), f"{API}: node 2: clip is fed by"),
    "API form alone": (lambda r: (r / API).unlink(), f"{FLOW}: has no api/cartoon.api.json"),
    "picture without workflow": (put_picture(PICTURE, noise(64, 64)), f"{PICTURE}: carries no workflow"),
    "picture of another workflow": (
        lambda r: put(r / PICTURE, (r / "comfyui/drag_in/cartoon_with_anime.png").read_bytes()), f"{PICTURE}: carries another workflow"
    ),
    # the whole
    "card of the hub without header": (lambda r: put(r / "hub/README.md", "# cartoon"), "hub/README.md: has no YAML header"),
    "card of the hub without licence": (
        lambda r: put(r / "hub/README.md", (r / "hub/README.md").read_text().replace("license: ", "licence: ", 1)), "hub/README.md: its header lacks license"
    ),
    "card of the hub unreadable": (lambda r: put(r / "hub/README.md", "---\na: [\n---\n"), "hub/README.md: its YAML header cannot be read"),
    "card of the hub names a picture": (lambda r: (r / "hub/grid.png").unlink(), "hub/README.md: names grid.png"),
    "no LoRA": (lambda r: [path.unlink() for path in r.rglob("*.safetensors")], "^no .safetensors file"),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(KINDS))
def test_each_kind_of_broken_package_gets_a_line_of_its_own(kind: str, package: Path) -> None:
    (package / "SHA256SUMS").unlink()  # else each of them is told as changed too
    work, line = KINDS[kind]
    work(package)
    faults = verify_package(package).faults
    assert [fault for fault in faults if re.search(line, fault)], faults
    assert all("\n" not in fault for fault in faults)


@pytest.mark.parametrize(("layer", "faults"), [(11, 0), (10, 1)])
def test_what_clip_skip_left_untrained_is_no_fault(layer: int, faults: int, package: Path) -> None:
    def zeroed(state: dict[str, Any]) -> dict[str, Any]:
        last = f"lora_te_text_model_encoder_layers_{layer}_"
        return {
            name: tensor * 0 if name.startswith(last) and "up" in name else tensor for name, tensor in state.items()
        }

    with_header(lambda metadata: metadata.update(ss_clip_skip="2"))(package)
    with_tensors(zeroed)(package)
    (package / "SHA256SUMS").unlink()
    assert len(verify_package(package).faults) == faults


def test_there_are_many_kinds_and_no_two_share_a_line() -> None:
    assert len(KINDS) > 60
    assert len({line for _, line in KINDS.values()}) == len(KINDS)


def test_a_whole_package_has_no_fault_and_each_ui_applies_all_of_it(package: Path) -> None:
    found = verify_package(package)
    assert found.faults == []
    assert all(check.applied == dict.fromkeys(("A1111", "ComfyUI", "InvokeAI"), 264) for check in found.loras.values())
    assert sum("narrow random model" in note for note in found.notes) == 1


def test_one_uis_folder_alone_is_verified_too(package: Path) -> None:
    for target in ("a1111", "forge", "comfyui", "invokeai", "swarmui", "hub", "mixes"):
        found = verify_package(package / target)
        assert (len(found.loras) > 0, found.faults) == (True, [])


def test_checksums_tell_what_is_gone_added_and_changed(package: Path) -> None:
    (package / "civitai.md").unlink()
    put(package / "notes.md", "mine")
    put(package / "install.md", "changed")
    assert list(verify_package(package).faults) == [
        "SHA256SUMS: 1 files are gone: civitai.md",
        "SHA256SUMS: 1 files were not in the package: notes.md",
        "SHA256SUMS: 1 files are not as they were packed: install.md",
    ]
    put(package / "SHA256SUMS", "nonsense\n")
    assert "SHA256SUMS: has a line that is no checksum: 'nonsense'" in verify_package(package).faults


def test_no_folder_is_an_error_of_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        verify_package(tmp_path / "nowhere")
