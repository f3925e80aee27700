"""The whole house at once: images in, a LoRA and its evidence out, through either engine."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import orchestrate
from brushset import engines
from brushset.bases.header import read_header
from brushset.cli.guard import guarded
from brushset.engines.kohya import KohyaEngine
from brushset.kohya.source import Source
from brushset.paths import PROJECT
from brushset.records import BaseFile

ART = PROJECT.parent / "shared" / "data"
SETS = {"anime": "anime_mikabul", "watercolor": "watercolor_potter", "cartoon": "cartoon_gophers"}
IMAGES_OF_EACH = 10
WRAPPER = Path(__file__).parent / "tiny_sd_scripts" / "train_network.py"

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    kept = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    yield
    for signum, handler in kept.items():
        signal.signal(signum, handler)


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('runs "of" it\'s\nown')


def call(runs_dir: Path, *argv: str) -> int:
    return guarded(orchestrate.app, [*argv, "--runs-dir", str(runs_dir)])


def heard(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def keys(path: Path) -> set[str]:
    return set(read_header(path).tensors)


def check_run(run: Path, style: str) -> None:
    """What every finished run must hold."""
    manifest = json.loads((run / "run.json").read_text())
    assert manifest["status"] == "done"
    assert len(manifest["stages"]) == len(orchestrate.STAGES)
    assert len(keys(run / f"weights/{style}.safetensors")) == 792
    scores = json.loads((run / "eval/scores.json").read_text())
    assert scores["meaningful"] is False
    for folder in ("a1111/models/Lora", "comfyui/models/loras"):
        assert (run / "export" / folder / f"{style}.safetensors").is_file()
    page = (run / "report.html").read_text()
    assert "proves only that the machinery works" in page
    assert (run / "adapter/pytorch_lora_weights.safetensors").is_file()


def test_the_whole_pipeline_on_demo_images_then_nothing_then_only_what_changed(
    runs_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    smoke = ("--style", "cartoon", "--smoke", "--engine", "native", "--json")
    assert call(runs_dir, *smoke) == 0
    check_run(runs_dir / "cartoon/latest", "cartoon")
    first = (runs_dir / "cartoon/latest").resolve()
    capsys.readouterr()

    assert call(runs_dir, *smoke) == 0
    events = heard(capsys.readouterr().out)
    assert [event["event"] for event in events if event["event"].startswith("stage")] == ["stage_skip"] * 10
    assert events[-1]["worked"] == 0

    assert call(runs_dir, *smoke, "--until", "train", "--set", "train.network_dim=8") == 0
    events = heard(capsys.readouterr().out)
    assert [event["stage"] for event in events if event["event"] == "stage_end"] == ["configure", "train"]
    assert (runs_dir / "cartoon/latest").resolve() != first


def test_a_run_is_worked_on_again_by_its_commands(runs_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(runs_dir, "--style", "cartoon", "--smoke", "--engine", "native") == 0
    run = runs_dir / "cartoon/latest"
    for command in ("choose", "convert", "evaluate", "export", "report"):
        assert call(runs_dir, command, "--style", "cartoon") == 0
    assert call(runs_dir, "evaluate", "--style", "cartoon", "--set", "evaluate.seeds=[5, 6]") == 0
    scores = json.loads((run / "eval/scores.json").read_text())
    assert scores["seeds"] == [5, 6]
    assert call(runs_dir, "evaluate", "--style", "cartoon", "--set", "train.network_dim=8") == 2
    assert "[train] cannot be changed there" in capsys.readouterr().err


def test_inference_draws_every_prompt(runs_dir: Path, tmp_path: Path) -> None:
    assert call(runs_dir, "--style", "cartoon", "--smoke", "--engine", "native", "--until", "train") == 0
    argv = ("inference", "--prompts", "a girl", "--prompts", "a lake", "--loras", "cartoon:0.6", "--out", str(tmp_path))
    assert call(runs_dir, *argv) == 0
    rows = json.loads((tmp_path / "images.json").read_text())
    assert rows["base_random"] is True
    assert [row["prompt"] for row in rows["images"]] == ["cartoonstyle, a girl", "cartoonstyle, a lake"]
    assert all((tmp_path / row["file"]).is_file() for row in rows["images"])


@pytest.fixture
def art(tmp_path: Path) -> dict[str, Path]:
    """A few real images of each style, copied."""
    if not ART.is_dir():
        pytest.skip("no real art beside the project (../shared/data)")
    folders = {}
    for style, name in SETS.items():
        folders[style] = tmp_path / f"{style} art"
        folders[style].mkdir()
        pictures = sorted(path for path in (ART / name).iterdir() if path.suffix in {".jpg", ".png"})
        assert len(pictures) > 50
        for picture in pictures[:IMAGES_OF_EACH]:
            shutil.copy(picture, folders[style])
    return folders


def test_three_styles_of_real_art_in_one_command(art: dict[str, Path], tmp_path: Path) -> None:
    folders = [word for style, folder in art.items() for word in ("--images", f"{style}={folder}")]
    assert call(tmp_path / "runs", "all", *folders, "--smoke", "--engine", "native") == 0
    for style in SETS:
        run = tmp_path / "runs" / style / "latest"
        check_run(run, style)
        captions = [path.read_text() for path in (run / "images").glob("*.txt")]
        assert len(captions) == IMAGES_OF_EACH
        cells = {cell["name"] for cell in json.loads((run / "eval/scores.json").read_text())["cells"]}
        assert len(cells) == 6, "base, with style words, alone, with each of the two others, and with both"


@pytest.mark.vendor
def test_sd_scripts_leaves_the_same_keys_as_the_native_engine(
    art: dict[str, Path], tmp_path: Path, tiny_base: BaseFile, sd_scripts: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = dict(engines.ENGINES) | {"kohya": lambda: KohyaEngine(train_script=WRAPPER)}
    monkeypatch.setattr(engines, "ENGINES", both)
    found = {}
    for engine in ("kohya", "native"):
        runs = tmp_path / engine
        argv = ("--style", "cartoon", "--smoke", "--engine", engine, "--images", str(art["cartoon"]))
        assert call(runs, *argv, "--base-model", tiny_base.path) == 0
        manifest = json.loads((runs / "cartoon/latest/run.json").read_text())
        assert manifest["engine"] == engine
        assert manifest["sd_scripts_commit"] == (sd_scripts.commit if engine == "kohya" else "")
        found[engine] = keys(runs / "cartoon/latest/weights/cartoon.safetensors")
    assert found["kohya"] == found["native"]
    assert len(found["kohya"]) == 792
