"""What packages take from evaluation: the chosen checkpoint and weight, the best picture, the advised mixes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from export_case import (
    header_of,
    make_job,
    make_run,
    make_spec,
    mix_candidate,
    mix_choice,
    raw_parts,
    report_of,
    run_export,
    trained_record,
)
from lora_files import write_lora

from brushset.bases.configs import SD15
from brushset.files import sha256_file, write_json
from brushset.lora.metadata import read_metadata
from brushset.paths import RunPaths
from brushset.records import Cell, Checkpoint, Choice, EvalReport, Exports, PlaceMeasure, PlaceValues, Trained
from brushset.spec import ExportSection, StyleSpec
from brushset.stage_records import StageRecord
from webui_export.lora_file import write_lora as write_exported
from webui_export.samples import best_place, ordered_samples
from webui_export.verify import verify_package

WHY = "Epoch 3 at 0.6 keeps 70 % of the style."


def with_choice(run: RunPaths, *, epoch: int = 3) -> Trained:
    """Adds an earlier epoch's file, and a record that chose it; returns what training would have recorded."""
    name = run.style
    file = write_lora(run.weights / f"{name}-{epoch:06d}.safetensors", metadata=read_metadata(
        run.weights / f"{name}.safetensors"), dim=2, alpha=1.0, seed=epoch)  # fmt: skip
    digest = sha256_file(file)
    checkpoint = Checkpoint(path=f"weights/{file.name}", epoch=epoch, step=7, sha256=digest)
    trained = trained_record(name).model_copy(update={"checkpoints": (checkpoint,), "epochs": 9})
    choice = Choice(
        weights=checkpoint.path, weights_sha256=digest, epoch=epoch, weight=0.6, decided_by="retention", feasible=True,
        reason=WHY, meaningful=True,
    )  # fmt: skip
    for stage, record in (("train", trained), ("choose", choice)):
        kept = StageRecord(
            stage=stage,
            version=1,
            digest="d",
            started_at=0,
            ended_at=1,
            outputs={},
            data=record.model_dump(mode="json"),
        )
        write_json(run.record(stage), kept.model_dump(mode="json"))
    return trained


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Exports, Path, RunPaths]:
    """Packages of cartoon, of which epoch 3 of 9 was chosen, and of its mix with anime, of which epoch 2 was."""
    root = tmp_path_factory.mktemp("chosen")
    with_choice(make_run(root / "runs", "anime"), epoch=2)
    run = make_run(root / "runs", "cartoon")
    trained = with_choice(run)
    record = run_export(run, report_of("cartoon", "anime"), root / "export", trained=trained)
    return record, root / "export", run


def test_packages_hold_the_chosen_checkpoint_byte_for_byte_under_the_styles_name(
    made: tuple[Exports, Path, RunPaths],
) -> None:
    record, export, run = made
    packed = export / "comfyui/models/loras/cartoon.safetensors"
    assert raw_parts(packed)[1] == raw_parts(run.weights / "cartoon-000003.safetensors")[1]
    assert raw_parts(packed)[1] != raw_parts(run.weights / "cartoon.safetensors")[1]
    assert read_metadata(packed)["ss_output_name"] == "cartoon"
    assert (record.weights, record.epoch, record.weight) == ("weights/cartoon-000003.safetensors", 3, 0.6)
    assert record.weights_sha256 == sha256_file(run.weights / "cartoon-000003.safetensors")
    assert record.reason == WHY


def test_a_partners_file_in_a_mix_is_its_chosen_one_too(made: tuple[Exports, Path, RunPaths]) -> None:
    _, export, run = made
    anime = run.root.parents[1] / "anime" / "2025-run" / "weights"
    packed = export / "comfyui/models/loras/anime.safetensors"
    assert raw_parts(packed)[1] == raw_parts(anime / "anime-000002.safetensors")[1]
    assert read_metadata(packed)["modelspec.lora_default_weight"] == "0.6"


def test_the_chosen_weight_stands_wherever_a_weight_is_told(made: tuple[Exports, Path, RunPaths]) -> None:
    export = made[1]
    card = json.loads((export / "a1111/models/Lora/cartoon.json").read_text())
    assert card["preferred weight"] == 0.6
    assert card["notes"].startswith(f"7 steps on stable-diffusion-v1-5/stable-diffusion-v1-5 by native.\n{WHY}")
    told = read_metadata(export / "invokeai/cartoon.safetensors")
    assert (told["modelspec.lora_default_weight"], told["modelspec.usage_hint"][-4:]) == ("0.6", "0.6.")
    flow = json.loads((export / "comfyui/api/cartoon.api.json").read_text())
    assert [n["inputs"]["strength_model"] for n in flow.values() if n["class_type"] == "LoraLoader"] == [0.6]
    assert "<lora:cartoon:0.6>" in (export / "install.md").read_text()
    assert "Suggested weight: 0.6" in (export / "civitai.md").read_text()


def test_the_model_card_says_which_checkpoint_and_why(made: tuple[Exports, Path, RunPaths]) -> None:
    text = (made[1] / "hub/README.md").read_text()
    assert f"## Which checkpoint, at which weight\n\n{WHY}" in text
    assert "20 steps, 9 epochs (this file: epoch 3, step 7)" in text
    assert f"SHA-256 of the file as trained: `{made[0].weights_sha256}`" in text
    assert "Half of anime is left." in text


def export_one(root: Path, report: EvalReport, **settings: Any) -> tuple[Exports, Path, list[Any]]:
    run, events = make_run(root / "runs", "cartoon"), []
    trained = with_choice(run)
    spec: StyleSpec = make_spec(**settings)
    return run_export(run, report, root / "export", spec=spec, events=events, trained=trained), root / "export", events


def test_a_users_weight_wins_and_the_note_says_so(tmp_path: Path) -> None:
    record, _, events = export_one(tmp_path, report_of("cartoon"), export=ExportSection(weight=0.9))
    assert record.weight == 0.9
    assert record.reason == f"Weight 0.9 is [export] weight, set by hand; evaluation recommends 0.6. {WHY}"
    assert any(event == "note" and record.reason in fields["text"] for event, fields in events)


def test_a_choice_of_an_earlier_training_is_not_used(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", "cartoon")
    with_choice(run)
    record = run_export(run, report_of("cartoon"), tmp_path / "export", trained=trained_record("cartoon"))
    assert (record.weights, record.epoch, record.weight, record.reason) == ("weights/cartoon.safetensors", 1, 0.8, "")


def values(*, meaningful: bool = True, **measures: tuple[float, ...]) -> PlaceValues:
    return PlaceValues(
        prompts=("a", "b"), seeds=(1, 1), references="",
        measures={name: PlaceMeasure(extractor="x", meaningful=meaningful, cells={"cartoon 0.8": rows}) for name, rows in measures.items()},
    )  # fmt: skip


CELL = Cell(name="cartoon 0.8", mix={"cartoon": 0.8}, images=("0", "1", "2", "3"), role="alone")


def test_the_best_sample_is_the_most_alike_of_those_that_show_their_prompt() -> None:
    style, prompt = (0.9, 0.5, 0.7, 0.7), (10.0, 30.0, 25.0, 25.0)
    assert best_place(values(style_similarity_csd=style, clip_score=prompt), CELL) == 2
    assert best_place(values(style_similarity=style, clip_score=(1.0,) * 4), CELL) == 0
    both = values(style_similarity=style, style_similarity_csd=(0.0, 0.0, 0.0, 1.0), clip_score=(1.0,) * 4)
    assert best_place(both, CELL) == 3, "CSD first"
    for unknown in (
        None,
        values(style_similarity_csd=style),
        values(meaningful=False, style_similarity_csd=style, clip_score=prompt),
    ):
        assert best_place(unknown, CELL) == 0


def test_preview_and_gallery_begin_with_the_best_sample(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", "cartoon")
    found = values(style_similarity_csd=(0.1, 0.9), clip_score=(5.0, 5.0))
    write_json(run.eval / "values.json", found.model_dump(mode="json"))
    report = report_of("cartoon")
    assert ordered_samples(run, report, "cartoon") == [1, 0]
    record = run_export(run, report, tmp_path / "export")
    assert record.preview == "eval/images/alone/1_1.png"
    best = (run.eval / "images/alone/1_1.png").read_bytes()
    assert (tmp_path / "export/hub/sample_1.png").read_bytes() == best
    assert "text: cartoonstyle, a lake" in (tmp_path / "export/hub/README.md").read_text()
    (run.eval / "values.json").write_text("{}")
    assert ordered_samples(run, report, "cartoon")[0] == 0


def test_where_no_ui_does_what_is_advised_the_best_sum_is_packed_and_told(tmp_path: Path) -> None:
    advised, best = (
        mix_candidate({"cartoon": 0.8, "anime": 0.8}, "composite"),
        mix_candidate({"cartoon": 0.7, "anime": 0.3}),
    )
    make_run(tmp_path / "runs", "anime")
    report = report_of("cartoon").model_copy(
        update={"mix_choices": (mix_choice("cartoon", "anime", chosen=advised, as_sum=best),)}
    )
    run_export(make_run(tmp_path / "runs", "cartoon"), report, tmp_path / "export")
    flow = json.loads((tmp_path / "export/comfyui/api/cartoon_with_anime.api.json").read_text())
    assert [n["inputs"]["strength_model"] for n in flow.values() if n["class_type"] == "LoraLoader"] == [0.7, 0.3]
    told = "Advised is cartoon 0.8 + anime 0.8, composite, which no UI does; this is the best weighted sum."
    card = json.loads((tmp_path / "export/a1111/models/Lora/cartoon.json").read_text())
    assert told in card["notes"]
    assert "--loras cartoon:0.8 anime:0.8 --method composite --shares weights" in card["notes"]
    assert told in (tmp_path / "export/hub/README.md").read_text()
    assert told in json.loads((tmp_path / "export/mixes/cartoon_with_anime.json").read_text())["notes"]


def test_triples_are_packed_like_pairs(tmp_path: Path) -> None:
    for name in ("anime", "ink"):
        make_run(tmp_path / "runs", name)
    all_three = mix_candidate({"cartoon": 0.33, "anime": 0.33, "ink": 0.33})
    triple = mix_choice("cartoon", "anime", styles=("cartoon", "anime", "ink"), chosen=all_three, as_sum=all_three)
    report = report_of("cartoon").model_copy(update={"mix_choices": (triple,)})
    run_export(make_run(tmp_path / "runs", "cartoon"), report, tmp_path / "export")
    flow = json.loads((tmp_path / "export/comfyui/api/cartoon_with_anime_with_ink.api.json").read_text())
    assert sum(node["class_type"] == "LoraLoader" for node in flow.values()) == 3
    merged = read_metadata(tmp_path / "export/mixes/cartoon_with_anime_with_ink.safetensors")
    assert merged["modelspec.merged_from"] == "cartoon, anime, ink"
    assert verify_package(tmp_path / "export").faults == []


def test_a_full_width_file_made_on_random_numbers_is_noted_and_not_refused(tmp_path: Path) -> None:
    for name, base_random in (("cartoon", True), ("anime", False)):
        job = make_job(tmp_path / name, spec=make_spec(name), base_random=base_random)
        write_lora(job.weights, architecture=SD15, metadata=header_of(name), dim=2, alpha=1.0, dtype="float16")
        write_exported(job)
        found = verify_package(job.lora.parent)
        assert found.faults == []
        noted = [note for note in found.notes if "base model of random numbers: UIs apply it" in note]
        assert len(noted) == base_random
    raw = write_lora(
        tmp_path / "raw/mine.safetensors", architecture=SD15, metadata={"ss_sd_model_name": "random:sd15"}, dim=1
    )
    assert "base model of random numbers" in verify_package(raw.parent).notes[0]


def test_a_mix_with_a_style_made_on_random_numbers_says_so_in_its_header(tmp_path: Path) -> None:
    make_run(tmp_path / "runs", "anime")
    trained = trained_record("cartoon", base_random=True)
    run_export(
        make_run(tmp_path / "runs", "cartoon"), report_of("cartoon", "anime"), tmp_path / "export", trained=trained
    )
    assert read_metadata(tmp_path / "export/mixes/cartoon_with_anime.safetensors")["brushset.base"] == "random"
