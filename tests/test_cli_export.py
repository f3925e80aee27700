"""`export` and `verify-export`, as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from export_case import make_run, report_of, run_export

import orchestrate
from brushset.cli import export as packages
from brushset.cli.guard import guarded
from brushset.cli.options import Options, spread_values
from brushset.paths import RunPaths


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with one whose export stands."""
    root = tmp_path_factory.mktemp("cli") / "runs"
    run = make_run(root, "cartoon")
    run_export(run, report_of("cartoon"), run.export)
    return root


def call(*argv: object) -> int:
    return guarded(orchestrate.app, [str(word) for word in argv])


def test_verify_export_tells_what_each_ui_applies(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export = runs / "cartoon/2025-run/export"
    assert call("verify-export", export) == 0
    out, err = capsys.readouterr()
    assert "✓ a1111/models/Lora/cartoon.safetensors: of 264 modules A1111 264, ComfyUI 264, InvokeAI 264" in out
    assert out.strip().endswith("all right")
    assert "error" not in err


def test_verify_export_ends_with_6_and_a_line_for_each_fault(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "Lora"
    folder.mkdir()
    (folder / "x y.safetensors").write_bytes((runs / "cartoon/2025-run/weights/cartoon.safetensors").read_bytes())
    assert call("verify-export", folder, "--json") == 6
    out, err = capsys.readouterr()
    faults = json.loads(out.splitlines()[0])["faults"]
    assert any('A1111 cannot call a LoRA "x y"' in fault for fault in faults)
    assert any("its header lacks" in fault for fault in faults)
    assert any("x y.json: is missing" in fault for fault in faults)
    assert len([line for line in err.splitlines() if line.startswith("error: ")]) == len(faults)
    assert call("verify-export", tmp_path / "nowhere") == 2


def test_to_takes_several_words_and_leaves_convert_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["export", "--to", "a1111", "comfyui", "--style", "cartoon"]
    flags = orchestrate._spread_flags(argv)
    assert spread_values(argv, flags) == ["export", "--to", "a1111", "--to", "comfyui", "--style", "cartoon"]
    argv = ["convert", "--to", "kohya", "x.safetensors"]
    assert spread_values(argv, orchestrate._spread_flags(argv)) == argv


def test_to_becomes_the_setting_and_install_follows_the_stage(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(packages, "work_on_run", lambda _stages, options, _stage: asked.append(options.settings))
    monkeypatch.setattr("brushset.paths.RunsDir.latest", lambda _, name: RunPaths(runs / name / "2025-run"))
    (tmp_path / "ui/models/Lora").mkdir(parents=True)
    options = ("--style", "cartoon", "--runs-dir", runs)
    assert call("export", *options, "--to", "a1111", "--to", "forge", "--install", tmp_path / "ui") == 0
    assert asked == [['export.targets=["a1111", "forge"]']]
    out, _ = capsys.readouterr()
    assert out.strip().endswith("3 files copied")
    assert (tmp_path / "ui/models/Lora/cartoon.safetensors").is_file()


def test_what_does_not_go_together_is_told_before_any_work(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("export", "--style", "cartoon", "--replace", "--runs-dir", runs) == 2
    assert "--replace goes with --install DIR" in capsys.readouterr().err
    assert call("export", "--style", "cartoon", "--style", "anime", "--push-to-hub", "a/b", "--runs-dir", runs) == 2
    assert "one repository holds one style" in capsys.readouterr().err
    assert call("export", "--style", "cartoon", "--to", "a111", "--runs-dir", runs) == 2
    assert 'unknown "a111"; known: a1111, forge' in capsys.readouterr().err
    assert call("export", "--style", "cartoon", "--install", tmp_path / "nowhere", "--runs-dir", runs) == 2
    assert "no such folder" in capsys.readouterr().err


def test_targets_are_quoted_for_toml() -> None:
    assert packages._with_targets(Options(settings=["a.b=1"]), ("comfyui",)).settings == [
        "a.b=1",
        'export.targets=["comfyui"]',
    ]
    assert packages._with_targets(Options(), ()) == Options()
