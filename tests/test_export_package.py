"""The packages: tensors untouched, metadata that every UI reads, and nothing in the folder that trips one of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from brushset.errors import UsageError, VerificationFailed
from brushset.paths import RunPaths
from brushset.pipeline import StageContext
from brushset.protocols import ExportJob
from brushset.records import Cell, EvalReport, Trained
from brushset.spec import StyleSpec
from webui_export import EXPORTERS, lora_file
from webui_export.lora_file import MAX_HEADER_BYTES, base_name, complete_metadata, lora_stem, write_lora
from webui_export.stage import STAGE, check_targets

TRAINERS_METADATA = {
    "ss_output_name": "last-000004",
    "ss_network_dim": "4",
    "ss_clip_skip": "None",
    "ss_training_comment": "",
    "ss_sd_model_hash": "IsADirectory",
    "ss_tag_frequency": '{"images": {"cartoonstyle": 4}}',
    "modelspec.resolution": "256x256",
    "sshs_model_hash": "0" * 64,
}


def save_lora(path: Path, metadata: Mapping[str, str] = TRAINERS_METADATA) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    tensors = {}
    for module in ("lora_unet_down_blocks_0_attentions_0_proj_in", "lora_te_text_model_encoder_layers_0_mlp_fc1"):
        tensors[f"{module}.lora_up.weight"] = random.normal(size=(8, 4)).astype(np.float16)
        tensors[f"{module}.lora_down.weight"] = random.normal(size=(4, 8)).astype(np.float16)
        tensors[f"{module}.alpha"] = np.array(2.0, dtype=np.float16)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, dict(metadata))
    return tensors


def make_job(
    root: Path, *, spec: StyleSpec | None = None, base_random: bool = False, preview: bool = True
) -> ExportJob:
    run = RunPaths(root / "runs" / "cartoon" / "2025-run")
    save_lora(run.weights / "cartoon.safetensors")
    picture = root / "sample.png"
    Image.linear_gradient("L").resize((640, 512)).convert("RGB").save(picture)
    folder = root / "package"
    folder.mkdir(exist_ok=True)
    trained = Trained(
        engine="native", engine_version="1", command=(), weights="weights/cartoon.safetensors", weights_sha256="a",
        checkpoints=(), steps=2, epochs=1, losses=(), seconds=1, device="cpu", modules=2, tensors=6, base_sha256="b",
        base_random=base_random,
    )  # fmt: skip
    spec = spec or StyleSpec(name="cartoon", trigger="cartoonstyle")
    return ExportJob(spec, run, trained, run.weights / "cartoon.safetensors", picture if preview else None, folder)


def raw_parts(path: Path) -> tuple[bytes, bytes]:
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    return raw[8 : 8 + size], raw[8 + size :]


def metadata_of(path: Path) -> dict[str, str]:
    return json.loads(raw_parts(path)[0])["__metadata__"]


def test_tensors_are_identical_byte_for_byte(tmp_path: Path):
    job = make_job(tmp_path)
    written = write_lora(job)
    assert raw_parts(written)[1] == raw_parts(job.weights)[1]
    before, after = load_file(job.weights), load_file(written)
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)


def test_the_trainers_own_file_is_left_alone(tmp_path: Path):
    job = make_job(tmp_path)
    before = job.weights.read_bytes()
    write_lora(job)
    assert job.weights.read_bytes() == before


def test_metadata_is_complete_for_every_ui(tmp_path: Path):
    written = write_lora(make_job(tmp_path))
    header, data = raw_parts(written)
    metadata = metadata_of(written)
    digest = hashlib.sha256(data).hexdigest()
    assert header.startswith(b'{"')
    assert len(header) < MAX_HEADER_BYTES
    assert metadata["sshs_model_hash"] == digest
    assert metadata["modelspec.hash_sha256"] == f"0x{digest}"
    assert metadata["ss_output_name"] == written.stem == "cartoon"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert metadata["modelspec.trigger_phrase"] == "cartoonstyle"
    assert metadata["modelspec.resolution"] == "256x256", "what the trainer knew stays"
    assert metadata["modelspec.title"] == "cartoon (SD 1.5)"
    assert metadata["ss_network_dim"] == "4"
    assert all(isinstance(value, str) and value not in ("", "None", "IsADirectory") for value in metadata.values())
    assert "ss_clip_skip" not in metadata, "A1111 reads float(value)"


def test_the_thumbnail_is_a_small_jpeg_of_256_pixels(tmp_path: Path):
    import base64
    import io

    uri = complete_metadata(make_job(tmp_path))["modelspec.thumbnail"]
    head, _, body = uri.partition(",")
    with Image.open(io.BytesIO(base64.b64decode(body))) as image:
        assert (head, image.format, image.size) == ("data:image/jpeg;base64", "JPEG", (256, 256))
    assert len(uri) < 100_000


def test_without_a_sample_there_is_neither_preview_nor_thumbnail(tmp_path: Path):
    job = make_job(tmp_path, preview=False)
    assert "modelspec.thumbnail" not in complete_metadata(job)
    assert EXPORTERS["a1111"](job).files == ("cartoon.safetensors", "cartoon.json")


def test_a_header_of_too_many_captions_is_slimmed_to_what_uis_take(tmp_path: Path):
    job = make_job(tmp_path)
    save_lora(job.weights, {**TRAINERS_METADATA, "ss_tag_frequency": json.dumps({"a": {"x" * 1_200_000: 1}})})
    written = write_lora(job)
    assert len(raw_parts(written)[0]) < MAX_HEADER_BYTES
    assert raw_parts(written)[1] == raw_parts(job.weights)[1]


def test_a_copy_whose_tensors_differ_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    job = make_job(tmp_path)
    real = lora_file.rewrite_metadata

    def damage(source: Path, target: Path, metadata: Mapping[str, str]) -> None:
        real(source, target, metadata)
        raw = target.read_bytes()
        target.write_bytes(raw[:-1] + bytes([(raw[-1] + 1) % 256]))

    monkeypatch.setattr(lora_file, "rewrite_metadata", damage)
    with pytest.raises(VerificationFailed, match="its tensors are not those of"):
        write_lora(job)


def test_a1111_gets_a_sidecar_with_the_keys_and_types_its_cards_read(tmp_path: Path):
    job = make_job(tmp_path)
    package = EXPORTERS["a1111"](job)
    assert package.files == ("cartoon.safetensors", "cartoon.json", "cartoon.preview.png")
    assert sorted(path.name for path in job.folder.iterdir()) == sorted(package.files)
    card = json.loads((job.folder / "cartoon.json").read_text())
    assert set(card) == {"description", "sd version", "activation text", "preferred weight", "negative text", "notes"}
    assert (card["sd version"], card["activation text"], card["preferred weight"]) == ("SD1", "cartoonstyle", 0.8)
    assert "<lora:cartoon:0.8> cartoonstyle" in package.install
    with Image.open(job.folder / "cartoon.preview.png") as preview:
        assert max(preview.size) == 512


def test_comfyui_gets_workflows_that_name_only_what_is_in_the_folder(tmp_path: Path):
    job = make_job(tmp_path)
    package = EXPORTERS["comfyui"](job)
    assert sorted(path.name for path in job.folder.iterdir()) == sorted(package.files)
    api = json.loads((job.folder / "cartoon.workflow.api.json").read_text())
    loaders = [node["inputs"] for node in api.values() if node["class_type"] == "LoraLoader"]
    assert [(node["lora_name"], node["strength_model"]) for node in loaders] == [("cartoon.safetensors", 0.8)]
    assert (job.folder / loaders[0]["lora_name"]).is_file()
    ui = json.loads((job.folder / "cartoon.workflow.json").read_text())
    assert {str(node["id"]): node["type"] for node in ui["nodes"]} == {
        number: node["class_type"] for number, node in api.items()
    }
    assert api["3"]["inputs"]["text"].startswith("cartoonstyle, ")


@pytest.mark.parametrize("target", list(EXPORTERS))
def test_no_text_file_lies_beside_the_lora(target: str, tmp_path: Path):
    job = make_job(tmp_path)
    EXPORTERS[target](job)
    assert not list(job.folder.glob("*.txt")), "A1111 would show it as the description"


def test_what_proves_only_the_machinery_says_so_in_the_file(tmp_path: Path):
    smoke = StyleSpec(name="cartoon", trigger="cartoonstyle", smoke=True)
    assert "machinery" in complete_metadata(make_job(tmp_path, spec=smoke))["modelspec.description"]
    assert "machinery" in complete_metadata(make_job(tmp_path, base_random=True))["modelspec.description"]
    assert "machinery" not in complete_metadata(make_job(tmp_path))["modelspec.description"]


def test_a_name_that_prompts_cannot_hold_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match='style "none"'):
        lora_stem(make_job(tmp_path, spec=StyleSpec(name="none", trigger="x")))


def test_a_machines_own_path_does_not_travel():
    assert base_name("/home/someone/secret/model.safetensors") == "model.safetensors"
    assert base_name("stable-diffusion-v1-5/stable-diffusion-v1-5") == "stable-diffusion-v1-5/stable-diffusion-v1-5"


def test_an_unknown_target_is_named_with_those_known():
    with pytest.raises(UsageError, match='"invoke"; known: a1111, comfyui'):
        check_targets(("a1111", "invoke"))


def test_the_stage_packs_every_target_with_the_adapters_first_image(tmp_path: Path):
    job = make_job(tmp_path)
    (job.run.eval / "images").mkdir(parents=True)
    Image.new("RGB", (64, 64), "#336699").save(job.run.eval / "images" / "0_1.png")
    report = EvalReport(
        cells=(
            Cell(name="base", mix={}, images=("eval/images/missing.png",)),
            Cell(name="cartoon 0.8", mix={"cartoon": 0.8}, images=("eval/images/0_1.png",)),
        ),
        scores=(), grid="", prompts=(), seeds=(), meaningful=False, notes=(),
    )  # fmt: skip
    workdir = tmp_path / "work"
    workdir.mkdir()
    records = {Trained: job.trained, EvalReport: report}
    made = STAGE.run(StageContext(job.spec, job.run, workdir, lambda *_, **__: None, records, None))
    assert [package.folder for package in made.packages] == ["export/a1111", "export/comfyui"]
    for package in made.packages:
        found = sorted(path.name for path in (workdir / package.target).iterdir())
        assert found == sorted(package.files)
    with Image.open(workdir / "a1111" / "cartoon.preview.png") as preview:
        assert preview.getpixel((0, 0)) == (0x33, 0x66, 0x99)
