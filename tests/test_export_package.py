"""The packages: tensors untouched, a header that every UI reads, and nothing in a folder that trips one of them."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from export_case import (
    TOLD,
    header_of,
    make_job,
    make_run,
    make_spec,
    raw_parts,
    report_of,
    run_export,
    written_job,
)
from lora_files import write_lora as write_trained
from PIL import Image

from brushset.errors import UsageError, VerificationFailed
from brushset.files import digest_files, list_files
from brushset.records import Exports
from brushset.spec import ExportSection
from webui_export import EXPORTERS, lora_file
from webui_export.header import base_name, complete_header, tell_tags
from webui_export.lora_file import write_lora
from webui_export.names import require_stem
from webui_export.pictures import write_preview
from webui_export.stage import check_targets
from webui_export.verify.header import MAX_HEADER_BYTES, REQUIRED


def metadata_of(path: Path) -> dict[str, str]:
    return json.loads(raw_parts(path)[0])["__metadata__"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Exports, Path]:
    """The stage's record and folder, of one style."""
    root = tmp_path_factory.mktemp("made")
    run = make_run(root / "runs", "cartoon")
    return run_export(run, report_of("cartoon"), root / "export"), root / "export"


def test_tensors_are_identical_byte_for_byte_and_the_trainers_file_is_left_alone(tmp_path: Path):
    job = make_job(tmp_path)
    before = job.weights.read_bytes()
    write_lora(job)
    assert raw_parts(job.lora)[1] == raw_parts(job.weights)[1]
    assert job.weights.read_bytes() == before


def test_the_header_is_complete_for_every_ui(tmp_path: Path):
    job = written_job(tmp_path)
    header, data = raw_parts(job.lora)
    metadata = metadata_of(job.lora)
    digest = hashlib.sha256(data).hexdigest()
    assert header.startswith(b'{"')
    assert len(header) < MAX_HEADER_BYTES
    assert set(REQUIRED) <= metadata.keys()
    assert metadata["sshs_model_hash"] == digest
    assert metadata["modelspec.hash_sha256"] == f"0x{digest}"
    assert metadata["ss_output_name"] == job.lora.stem == "cartoon"
    assert metadata["modelspec.trigger_phrase"] == "cartoonstyle"
    assert metadata["modelspec.resolution"] == "256x256", "what the trainer knew stays"
    assert metadata["modelspec.date"] == TOLD["modelspec.date"], "the training's, not the export's"
    assert metadata["modelspec.title"] == "cartoon (SD 1.5)"
    assert all(isinstance(value, str) and value not in ("", "None", "IsADirectory") for value in metadata.values())
    assert "ss_clip_skip" not in metadata, "A1111 reads float(value)"


def test_a_file_without_a_date_gets_the_day_its_training_ended(tmp_path: Path):
    job = make_job(tmp_path)
    write_trained(job.weights, metadata={key: TOLD[key] for key in TOLD if key != "modelspec.date"}, dim=2, alpha=1.0)
    assert complete_header(job)["modelspec.date"] == "1970-01-01", "the record's, one second after the epoch"


def test_the_thumbnail_is_a_small_jpeg_of_256_pixels(tmp_path: Path):
    uri = complete_header(make_job(tmp_path))["modelspec.thumbnail"]
    head, _, body = uri.partition(",")
    with Image.open(io.BytesIO(base64.b64decode(body))) as image:
        assert (head, image.format, image.size) == ("data:image/jpeg;base64", "JPEG", (256, 256))
    assert len(uri) < 100_000


def test_without_a_sample_there_is_neither_preview_nor_thumbnail(tmp_path: Path):
    job = written_job(tmp_path, preview=False)
    assert "modelspec.thumbnail" not in metadata_of(job.lora)
    assert EXPORTERS["a1111"](job).files == ("models/Lora/cartoon.json", "models/Lora/cartoon.safetensors")


@pytest.mark.parametrize(
    ("level", "tags"),
    [
        ("full", '{"images": {"cartoonstyle": 4, "secret": 1}}'),
        ("minimal", '{"images": {"cartoonstyle": 4}}'),
        ("none", None),
    ],
)
def test_captions_are_told_as_far_as_the_style_says(level: str, tags: str | None):
    told = tell_tags(header_of("cartoon"), level, "cartoonstyle")
    assert told.get("ss_tag_frequency") == tags
    assert ("secret" in json.dumps(told)) is (level == "full"), "ss_datasets repeats the tags"


def test_a_header_of_too_many_captions_is_slimmed_to_what_uis_take_and_that_is_told(tmp_path: Path):
    tags = json.dumps({"images": {"cartoonstyle": 4, "x" * 1_200_000: 1}})
    run = make_run(tmp_path / "runs", "cartoon", metadata={**TOLD, "ss_tag_frequency": tags})
    events: list[Any] = []
    run_export(run, report_of("cartoon"), tmp_path / "export", events=events)
    written = tmp_path / "export/invokeai/cartoon.safetensors"
    assert len(raw_parts(written)[0]) < MAX_HEADER_BYTES
    assert raw_parts(written)[1] == raw_parts(run.weights / "cartoon.safetensors")[1]
    assert any("ss_tag_frequency left out" in str(fields) for event, fields in events if event == "note")


def test_a_copy_whose_tensors_differ_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    job = make_job(tmp_path)
    real = lora_file.rewrite_metadata

    def damage(source: Path, target: Path, metadata: dict[str, str]) -> None:
        real(source, target, metadata)
        raw = target.read_bytes()
        target.write_bytes(raw[:-1] + bytes([(raw[-1] + 1) % 256]))

    monkeypatch.setattr(lora_file, "rewrite_metadata", damage)
    with pytest.raises(VerificationFailed, match="its tensors are not those of"):
        write_lora(job)


@pytest.mark.parametrize(("target", "folder"), [("a1111", "models"), ("forge", "models"), ("swarmui", "Models")])
def test_card_uis_get_keys_and_types_that_their_cards_read(target: str, folder: str, tmp_path: Path):
    job = written_job(tmp_path)
    package = EXPORTERS[target](job)
    names = [f"{folder}/Lora/cartoon.{suffix}" for suffix in ("json", "preview.png", "safetensors")]
    assert list(package.files) == names
    assert sorted(path.relative_to(job.folder).as_posix() for path in list_files(job.folder)) == names
    card = json.loads((job.folder / names[0]).read_text())
    assert set(card) == {"description", "sd version", "activation text", "preferred weight", "negative text", "notes"}
    assert (card["sd version"], card["activation text"], card["preferred weight"]) == ("SD1", "cartoonstyle", 0.8)
    with Image.open(job.folder / names[1]) as preview:
        assert preview.size == (512, 512)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((640, 512), (512, 512)), ((512, 768), (512, 768)), ((1024, 1536), (512, 768)), ((128, 128), (128, 128)), ((99, 200), (98, 147))],
)  # fmt: skip
def test_a_preview_is_square_or_two_to_three_and_never_enlarged(size: Any, expected: Any, tmp_path: Path):
    Image.new("RGB", size, "#336699").save(tmp_path / "in.png")
    write_preview(tmp_path / "in.png", tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as preview:
        assert preview.size == expected


def test_a_preview_of_noise_stays_below_a_megabyte(tmp_path: Path):
    bands = [Image.effect_noise((512, 768), 120) for _ in range(3)]
    Image.merge("RGB", bands).save(tmp_path / "in.png")
    assert (tmp_path / "in.png").stat().st_size > 1_000_000
    write_preview(tmp_path / "in.png", tmp_path / "out.png")
    assert (tmp_path / "out.png").stat().st_size < 1_000_000


def test_what_proves_only_the_machinery_says_so_in_the_file(tmp_path: Path):
    smoke = make_spec(smoke=True)
    assert "machinery" in complete_header(make_job(tmp_path / "a", spec=smoke))["modelspec.description"]
    assert "machinery" in complete_header(make_job(tmp_path / "b", base_random=True))["modelspec.description"]
    assert "machinery" not in complete_header(make_job(tmp_path / "c"))["modelspec.description"]


def test_a_name_that_prompts_cannot_hold_is_refused():
    with pytest.raises(UsageError, match='style "none"'):
        require_stem("none")
    assert require_stem("my_style-2") == "my_style-2"


def test_a_machines_own_path_does_not_travel():
    assert base_name("/home/someone/secret/model.safetensors") == "model.safetensors"
    assert base_name("stable-diffusion-v1-5/stable-diffusion-v1-5") == "stable-diffusion-v1-5/stable-diffusion-v1-5"


def test_an_unknown_target_is_named_with_those_known():
    with pytest.raises(UsageError, match='"invoke"; known: a1111, forge, comfyui, invokeai, swarmui'):
        check_targets(("a1111", "invoke"))
    with pytest.raises(UsageError, match="targets: none; known"):
        check_targets(())


def test_the_stage_lays_out_one_folder_a_ui_and_records_every_file(made: tuple[Exports, Path]):
    record, root = made
    assert [package.target for package in record.packages] == [*EXPORTERS, "hub"]
    for package in record.packages:
        assert package.folder == f"export/{package.target}"
        below = root / package.target
        assert sorted(package.files) == sorted(path.relative_to(below).as_posix() for path in list_files(below))
    tops = {path.relative_to(root).parts[0] for path in list_files(root)}
    assert tops == {*EXPORTERS, "hub", "install.md", "civitai.md", "SHA256SUMS"}, "no draft is left"


def test_copies_of_the_file_share_one_place_on_the_disk(made: tuple[Exports, Path]):
    files = list(made[1].rglob("cartoon.safetensors"))
    assert len(files) == 6
    assert len({file.stat().st_ino for file in files}) == 1


def test_no_text_file_lies_beside_a_lora(made: tuple[Exports, Path]):
    assert not list(made[1].rglob("*.txt")), "A1111 would show it as the description"


def test_install_md_has_three_lines_a_ui(made: tuple[Exports, Path]):
    sections = (made[1] / "install.md").read_text().split("\n## ")[1:]
    assert [section.partition("\n")[0] for section in sections] == [
        "AUTOMATIC1111", "Forge", "ComfyUI", "InvokeAI", "SwarmUI",
    ]  # fmt: skip
    assert all(re.findall(r"^\d\.", section, re.MULTILINE) == ["1.", "2.", "3."] for section in sections)
    assert "`<lora:cartoon:0.8> cartoonstyle, a girl`" in sections[0]


def test_checksums_are_what_sha256sum_reads(made: tuple[Exports, Path]):
    root = made[1]
    lines = [line.split("  ") for line in (root / "SHA256SUMS").read_text().splitlines()]
    files = [path for path in list_files(root) if path.name != "SHA256SUMS"]
    assert {name: digest for digest, name in lines} == digest_files(files, root)


def test_the_same_input_gives_the_same_bytes(made: tuple[Exports, Path], tmp_path: Path):
    run = make_run(tmp_path / "elsewhere", "cartoon")
    run = type(run)(run.root.rename(run.root.with_name("another-run-id")))
    run_export(run, report_of("cartoon"), tmp_path / "export")
    assert digest_files(list_files(tmp_path / "export"), tmp_path / "export") == digest_files(
        list_files(made[1]), made[1]
    )


def test_what_a_ui_would_not_apply_is_not_published(tmp_path: Path):
    run = make_run(tmp_path / "runs", "cartoon")
    write_trained(run.weights / "cartoon.safetensors", metadata=header_of("cartoon") | {"ss_network_dim": "8"}, dim=2)
    with pytest.raises(VerificationFailed) as failure:
        run_export(run, report_of("cartoon"), tmp_path / "export")
    assert failure.value.exit_code == 6
    lines = str(failure.value).splitlines()
    assert any("ss_network_dim is 8, the tensors' rank 2" in line for line in lines)
    assert any("ss_network_alpha is 1, alpha in 264 modules another" in line for line in lines)
    assert all(line.startswith("export: a1111/models/Lora/cartoon.safetensors: ") for line in lines)


def test_only_what_is_asked_for_is_packed(tmp_path: Path):
    run = make_run(tmp_path / "runs", "cartoon")
    spec = make_spec(export=ExportSection(targets=("comfyui",), author="A. Painter", tags=("ink",), license="cc0-1.0"))
    record = run_export(run, report_of("cartoon"), tmp_path / "export", spec=spec)
    assert [package.target for package in record.packages] == ["comfyui", "hub"]
    told = metadata_of(tmp_path / "export/comfyui/models/loras/cartoon.safetensors")
    assert (told["modelspec.author"], told["modelspec.license"]) == ("A. Painter", "cc0-1.0")
    assert told["modelspec.tags"] == "cartoon, style, lora, sd-1.5, ink"
    assert not os.path.lexists(tmp_path / "export" / "a1111")
