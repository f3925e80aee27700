"""convert FILE, inspect, resize, metadata and doctor FILE, as a user calls them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from lora_files import in_processors, lora_state, save, write_lora

import orchestrate
from brushset.cli.guard import guarded
from brushset.lora.adapter import read_adapter
from brushset.lora.deltas import compare_deltas
from brushset.lora.metadata import model_hash, read_metadata

TOLD = {
    "ss_base_model_version": "sd_v1",
    "ss_network_dim": "4",
    "ss_network_alpha": "2.0",
    "ss_output_name": "cartoon",
    "ss_tag_frequency": '{"my holiday": {"cartoonstyle": 4, "secret": 2}}',
    "ss_dataset_dirs": '{"my holiday": {"n_repeats": 1, "img_count": 4}}',
    "modelspec.title": "cartoon",
}


@pytest.fixture
def lora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return write_lora(tmp_path / "in" / "cartoon.safetensors", metadata=TOLD)


def call(*argv: object) -> int:
    return guarded(orchestrate.app, [str(word) for word in argv])


def answer(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    code = call(*argv)
    out, err = capsys.readouterr()
    return code, out, err


def test_convert_there_and_back(lora: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = answer(capsys, "convert", lora, "--to", "diffusers")
    assert code == 0
    assert "264 modules equal to" in out
    folder = Path("cartoon-diffusers")
    assert sorted(path.name for path in folder.iterdir()) == ["convert.json", "pytorch_lora_weights.safetensors"]
    code, _, _ = answer(capsys, "convert", folder, "--to", "kohya", "--out", "back.safetensors")
    assert code == 0
    assert model_hash(Path("back.safetensors")) == model_hash(lora)
    assert Path("back.convert.json").is_file()
    assert sorted(path.name for path in lora.parent.iterdir()) == ["cartoon.safetensors"]


def test_nothing_is_written_over(lora: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ("convert", lora, "--to", "diffusers", "--no-verify")
    assert call(*argv) == 0
    path = Path("cartoon-diffusers/pytorch_lora_weights.safetensors")
    path.write_bytes(b"mine")
    code, _, err = answer(capsys, *argv)
    assert (code, path.read_bytes()) == (2, b"mine")
    assert "is there already; fix: --replace" in err
    assert call(*argv, "--replace") == 0
    assert path.read_bytes() != b"mine"
    code, _, err = answer(capsys, "metadata", lora, "--set", "a=b", "--out", lora, "--replace")
    assert code == 2
    assert "is the file to read" in err


def test_convert_says_what_makes_a_true_copy_useless(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    living = lora_state()
    lost = {name: tensor for name, tensor in living.items() if not name.endswith(".alpha")}
    dead = {name: tensor * 0 if "lora_up" in name else tensor for name, tensor in living.items()}
    for name, state, said in (("lost", lost, "metadata says alpha 2: it was lost"), ("dead", dead, "add nothing")):
        file = save(state, tmp_path / f"{name}.safetensors", {"ss_network_alpha": "2.0"})
        code, out, err = answer(capsys, "convert", file, "--to", "diffusers", "--no-verify", "--out", tmp_path / name)
        assert code == 0, err
        assert "  ! " in out
        assert said in out


def test_convert_as_json(lora: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = answer(capsys, "convert", lora, "--to", "diffusers", "--json")
    figures = json.loads(out)
    assert (code, figures["event"], figures["deltas"]["modules"]) == (0, "conversion", 264)
    assert figures["outputs"]["errors"]["unet"] <= 1e-5


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (("convert", "{lora}"), 2, "--to .missing.: name the form"),
        (("convert", "{lora}", "--to", "safetensors"), 2, "one of kohya, diffusers"),
        (("convert", "--to", "kohya"), 2, "go with a file"),
        (("convert", "{lora}", "--to", "kohya"), 2, "in Kohya's form already"),
        (("convert", "nothing.safetensors", "--to", "kohya"), 2, "no such file"),
        (("inspect", "nothing.safetensors"), 2, "no such file"),
        (("resize", "{lora}"), 2, "name one of --rank and --energy"),
        (("resize", "{lora}", "--rank", "0"), 2, "must be at least 1"),
        (("resize", "{lora}", "--energy", "95"), 2, "a share above 0"),
        (("metadata", "{lora}", "--set", "title"), 2, "expected key=value"),
        (("metadata", "{lora}", "--set", "sshs_model_hash=1"), 2, "hashes are computed"),
        (("metadata", "{lora}", "--keep", "some"), 2, "one of full, minimal, none"),
        (("doctor", "nothing.safetensors"), 6, "no such file"),
    ],
)
def test_wrong_calls_are_told_in_one_line(
    argv: tuple[str, ...], code: int, says: str, lora: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    found, _, err = answer(capsys, *(word.format(lora=lora) for word in argv))
    assert found == code
    assert re.search(says, err)
    assert len(err.splitlines()) == 1
    assert not list(Path.cwd().iterdir())


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_names_out(lora: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path.cwd().chmod(0o500)
    code, _, err = answer(capsys, "resize", lora, "--rank", "2")
    assert code == 4
    assert "--out" in err


def test_inspect(lora: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = answer(capsys, "inspect", lora, "--chart", "chart.png")
    assert code == 0
    for line in ("rank      4", "alpha     2", "modules   264: UNet 192, text encoder 72", "trigger   cartoonstyle"):
        assert line in out
    assert "█" in out
    from PIL import Image

    with Image.open("chart.png") as image:
        assert image.size[0] > 500
    code, out, _ = answer(capsys, "inspect", lora, "--json")
    told = json.loads(out)
    assert (told["ranks"], told["modules"]["UNet"], told["hash_right"]) == ([4], 192, None)


def test_inspect_of_a_file_with_nan_is_json(lora: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = lora_state()
    state["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"][0, 0] = float("nan")
    save(state, lora)
    _, out, _ = answer(capsys, "inspect", lora, "--json")
    assert "NaN" not in out
    assert json.loads(out)["norms_by_block"]["text 0"] is None


def test_resize(lora: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = answer(capsys, "resize", lora, "--energy", "0.7")
    assert code == 0
    assert "energy kept" in out
    small = read_adapter(Path("cartoon-energy0.7.safetensors"))
    assert max(small.ranks) < 4
    assert compare_deltas(read_adapter(lora).factors, small.factors, "x").max_relative_error < 0.3**0.5 + 1e-3


def test_metadata_shown_edited_and_stripped(lora: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = answer(capsys, "metadata", lora)
    assert "[the captions' tags]" in out
    _, out, _ = answer(capsys, "metadata", lora, "--json")
    assert json.loads(out)["metadata"] == TOLD
    argv = ("metadata", lora, "--set", "ss_note=ü=1", "--set", "ss_dataset_dirs=", "--trigger", "cartoonstyle")
    assert call(*argv, "--title", "Cartoon", "--out", "new.safetensors") == 0
    told = read_metadata(Path("new.safetensors"))
    assert (told["ss_note"], told["modelspec.trigger_phrase"], told["modelspec.title"]) == (
        "ü=1",
        "cartoonstyle",
        "Cartoon",
    )
    assert "ss_dataset_dirs" not in told
    assert told["sshs_model_hash"] == model_hash(lora)
    for keep in ("minimal", "none"):
        code, out, _ = answer(capsys, "metadata", lora, "--keep", keep)
        path = Path(f"cartoon-{keep}.safetensors")
        assert code == 0
        assert b"secret" not in path.read_bytes()
        assert b"holiday" not in path.read_bytes()
        assert model_hash(path) == model_hash(lora)
        assert read_adapter(path).metadata["ss_base_model_version"] == "sd_v1"
    assert read_metadata(Path("cartoon-minimal.safetensors"))["modelspec.title"] == "cartoon"
    assert "ss_output_name" not in read_metadata(Path("cartoon-none.safetensors"))


def test_doctor_file(lora: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = answer(capsys, "doctor", lora)
    assert (code, err) == (0, "")
    assert "nothing here keeps it from working" in out
    save(in_processors(lora_state(), prefix=""), lora)
    code, out, err = answer(capsys, "doctor", lora)
    assert code == 6
    assert f"fix: orchestrate.py convert {lora} --to kohya" in out.replace("\n", "")
    assert "layout" in err
    code, out, _ = answer(capsys, "doctor", lora, "--json")
    events: list[Any] = [json.loads(line) for line in out.splitlines()]
    assert {"broken"} <= {event.get("level") for event in events}
