"""Mixes in a package: workflows with several LoRAs, and the merged file, which is the sum of what it was merged from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from export_case import header_of, make_run, make_spec, report_of, run_export
from lora_files import save
from safetensors.torch import load_file

from brushset.files import digest_files, list_files
from brushset.lora.adapter import read_adapter
from brushset.lora.metadata import read_metadata
from brushset.records import Exports
from brushset.spec import ExportSection
from webui_export.verify import verify_package


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Exports, Path, Path]:
    """Record, export folder and runs of cartoon, evaluated with anime."""
    root = tmp_path_factory.mktemp("mixes")
    make_run(root / "runs", "anime")
    run = make_run(root / "runs", "cartoon")
    return run_export(run, report_of("cartoon", "anime"), root / "export"), root / "export", root / "runs"


def test_a_mix_gets_a_workflow_with_both_loras_their_weights_and_triggers(made: tuple[Exports, Path, Path]) -> None:
    folder = made[1] / "comfyui"
    api = json.loads((folder / "api/cartoon_with_anime.api.json").read_text())
    loaders = [node["inputs"] for node in api.values() if node["class_type"] == "LoraLoader"]
    assert [(node["lora_name"], node["strength_model"], node["strength_clip"]) for node in loaders] == [
        ("cartoon.safetensors", 0.5, 0.5), ("anime.safetensors", 0.6, 0.6),
    ]  # fmt: skip
    prompts = [node["inputs"]["text"] for node in api.values() if node["class_type"] == "CLIPTextEncode"]
    assert prompts[0] == "cartoonstyle, animestyle, a girl"
    for name in ("cartoon", "anime"):
        assert (folder / f"models/loras/{name}.safetensors").is_file()
    assert (folder / "drag_in/cartoon_with_anime.png").is_file()


def test_the_merged_file_is_the_weighted_sum(made: tuple[Exports, Path, Path]) -> None:
    _, export, runs = made
    merged = read_adapter(export / "mixes/cartoon_with_anime.safetensors")
    parts = [read_adapter(runs / name / f"2025-run/weights/{name}.safetensors") for name in ("cartoon", "anime")]
    assert len(merged.factors) == 264
    for name, factor in merged.factors.items():
        expected = 0.5 * parts[0].factors[name].delta() + 0.6 * parts[1].factors[name].delta()
        assert float((factor.delta() - expected).norm()) < 1e-3 * float(expected.norm())


def test_the_merged_file_says_what_it_was_merged_from(made: tuple[Exports, Path, Path]) -> None:
    told = read_metadata(made[1] / "mixes/cartoon_with_anime.safetensors")
    assert told["modelspec.merged_from"] == "cartoon, anime"
    assert told["modelspec.trigger_phrase"] == "cartoonstyle, animestyle"
    assert told["ss_output_name"] == "cartoon_with_anime"
    assert told["modelspec.lora_default_weight"] == "1"
    card = json.loads((made[1] / "mixes/cartoon_with_anime.json").read_text())
    assert (card["preferred weight"], card["activation text"]) == (1.0, "cartoonstyle, animestyle")
    assert "<lora:cartoon:0.5> <lora:anime:0.6>" in card["notes"]


def test_a_mix_stands_under_every_licence_of_its_parts(tmp_path: Path) -> None:
    make_run(tmp_path / "runs", "anime", spec=make_spec("anime", export=ExportSection(license="cc-by-4.0")))
    run_export(make_run(tmp_path / "runs", "cartoon"), report_of("cartoon", "anime"), tmp_path / "export")
    told = read_metadata(tmp_path / "export/mixes/cartoon_with_anime.safetensors")
    assert told["modelspec.license"] == "creativeml-openrail-m, cc-by-4.0"
    assert told["modelspec.author"] == "anonymous"


def test_cards_and_the_model_card_tell_of_the_mix(made: tuple[Exports, Path, Path]) -> None:
    card = json.loads((made[1] / "a1111/models/Lora/cartoon.json").read_text())
    call = "<lora:cartoon:0.5> <lora:anime:0.6> cartoonstyle, animestyle"
    assert call in card["notes"]
    assert f"- with anime: `{call}`" in (made[1] / "hub/README.md").read_text()


def test_the_whole_is_verified_and_the_same_again(made: tuple[Exports, Path, Path], tmp_path: Path) -> None:
    _, export, _ = made
    found = verify_package(export)
    assert found.faults == []
    assert {Path(name).name for name in found.loras} == {
        "cartoon.safetensors", "anime.safetensors", "cartoon_with_anime.safetensors",
    }  # fmt: skip
    make_run(tmp_path / "runs", "anime")
    run_export(make_run(tmp_path / "runs", "cartoon"), report_of("cartoon", "anime"), tmp_path / "export")
    again = tmp_path / "export"
    assert digest_files(list_files(again), again) == digest_files(list_files(export), export)


def test_a_mix_whose_other_style_is_gone_is_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", "cartoon")
    record = run_export(run, report_of("cartoon", "anime"), tmp_path / "export")
    assert "mixes" not in [package.target for package in record.packages]
    assert not list((tmp_path / "export").rglob("*anime*"))


def test_merged_files_can_be_left_out(tmp_path: Path) -> None:
    make_run(tmp_path / "runs", "anime")
    run = make_run(tmp_path / "runs", "cartoon")
    spec = make_spec(export=ExportSection(merge_mixes=False))
    record = run_export(run, report_of("cartoon", "anime"), tmp_path / "export", spec=spec)
    assert [package.target for package in record.packages][-1] == "hub"
    assert (tmp_path / "export/comfyui/user/default/workflows/cartoon_with_anime.json").is_file()


def test_a_module_whose_numbers_half_precision_loses_is_kept_in_float32(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "runs", name) for name in ("anime", "cartoon")]
    faint = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_k.lora_up.weight"
    for run in runs:
        file = run.weights / f"{run.style}.safetensors"
        state = load_file(file)
        save(state | {faint: state[faint] * 1e-9}, file, header_of(run.style))
    run_export(runs[1], report_of("cartoon", "anime"), tmp_path / "export")
    merged = load_file(tmp_path / "export/mixes/cartoon_with_anime.safetensors")
    assert merged[faint].any()
    assert str(merged[faint].dtype) == "torch.float32"
