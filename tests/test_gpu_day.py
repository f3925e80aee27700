"""The bench for a GPU runs whole, narrow, on this machine; and its arithmetic on figures that are known."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from bench import gpu_day


@pytest.mark.timeout(900)
def test_every_stage_runs_and_leaves_its_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = gpu_day.main(["--tiny", "--minutes", "15", "--out", str(tmp_path)])
    assert found[0]["torch"]
    endings = {row["bench"]: row for row in found[1:] if "took_s" in row or ("left_out" in row and "stage" not in row)}
    assert list(endings) == [stage.name for stage in gpu_day.STAGES]
    without = set() if "SD_SCRIPTS_DIR" in os.environ else {"launches"}
    assert {name for name, row in endings.items() if "failed" in row} == without
    if without:
        assert "git submodule update" in (tmp_path / "launches.log").read_text()
    assert endings["compiled"]["left_out"] == "it takes minutes on a CPU"
    measured = {row["bench"] for row in found if "took_s" not in row and "left_out" not in row}
    assert measured >= {"ceilings", "steps", "equivalence", "folders to files", "generation"}
    (equal,) = (row for row in found if row.get("stage") == "packed against alone")
    assert 0 < equal["gradients"] < 1e-4
    said = capsys.readouterr().out
    assert "three styles from folders to files: " in said
    assert "batch 2: not measured" in said


def step(stage: str, batch: int, rate: float, **more: Any) -> dict[str, Any]:
    return {"bench": "steps", "stage": stage, "batch": batch, "text": False, "images_per_s": rate, "styles": 1, **more}


def test_targets_are_read_off_the_lines() -> None:
    found = [
        step("limit", 2, 400.0), step("sd-scripts", 2, 25.0), step("native, 3 styles, graph", 2, 200.0, styles=3),
        step("limit", 4, 440.0), step("sd-scripts", 4, 50.0), step("native, 3 styles", 4, 180.0, styles=3),
        step("native, 3 styles, graph", 4, 220.0, styles=3), step("native, 3 styles", 4, 999.0, styles=3, text=True),
        {"bench": "folders to files", "samples": 7200, "wall_s": 99.0}, {"bench": "generation", "way": "mixed", "images_per_s": 9.5},
    ]  # fmt: skip
    assert gpu_day.reached(found) == [220.0, 8.0, pytest.approx(4.4), 0.5, 99.0, 9.5]
    assert gpu_day.reached([]) == [None] * len(gpu_day.TARGETS)


def test_a_stage_that_dies_or_takes_too_long_ends_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dies.py").write_text("import sys; print('oh no'); sys.exit(3)")
    (tmp_path / "hangs.py").write_text("import time; time.sleep(60)")
    (tmp_path / "works.py").write_text(
        "import json, pathlib, sys; pathlib.Path(sys.argv[-1]).write_text(json.dumps({'stage': 'it'}) + chr(10))"
    )
    stages = [gpu_day.Stage(name, f"{name}.py", 5.5, (), ()) for name in ("dies", "hangs", "works")]
    monkeypatch.setattr(gpu_day, "STAGES", stages)
    monkeypatch.setattr(gpu_day, "FOLDER", tmp_path)
    found = gpu_day.main(["--out", str(tmp_path / "out")])
    assert [(row["bench"], row.get("failed", "")[:7], row.get("stage")) for row in found[1:]] == [
        ("dies", "exit 3,", None),
        ("hangs", "stopped", None),
        ("works", "", "it"),
        ("works", "", None),
    ]
    assert "oh no" in (tmp_path / "out" / "dies.log").read_text()
    assert len((tmp_path / "out" / "lines.jsonl").read_text().splitlines()) == len(found)
    assert json.loads((tmp_path / "out" / "lines.jsonl").read_text().splitlines()[0])["bench"] == "gpu_day"
