"""The bench for a GPU runs whole, narrow, on this machine, and so do the benches that it is made of; its arithmetic on figures
that are known.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import psutil
import pytest

from bench import gpu_day
from bench.timing import sum_kernels

pytestmark = pytest.mark.timeout(900)


@dataclass(frozen=True)
class Day:
    """What it found, said, and left in its folder."""

    found: list[dict[str, Any]]
    said: str
    out: Path

    def lines(self, stage: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.out / f"{stage}.jsonl").read_text().splitlines()]


class InThisProcess:
    """What Popen is to gpu_day, of a bench that imports torch: the same script with the same words, seconds sooner."""

    def __init__(self, command: list[str], *, stdout: IO[str], **_: Any) -> None:
        kept, sys.argv = sys.argv, command[1:]
        try:
            with contextlib.redirect_stdout(stdout), warnings.catch_warnings():
                warnings.simplefilter("default")
                runpy.run_path(command[1], run_name="__main__")
        finally:
            sys.argv = kept

    def __enter__(self) -> InThisProcess:  # noqa: PYI034 - Self is not in Python 3.10
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is left to be waited for."""

    def wait(self, _timeout: float) -> int:
        return 0


def start(command: list[str], **how: Any) -> Any:
    in_a_child = {"folder_to_files.py", "kohya.py"}  # whose work is in children of their own
    return (subprocess.Popen if Path(command[1]).name in in_a_child else InThisProcess)(command, **how)


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Day:
    out, said = tmp_path_factory.mktemp("day"), io.StringIO()
    with contextlib.redirect_stdout(said), pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_day, "Popen", start)
        found = gpu_day.main(["--tiny", "--minutes", "15", "--out", str(out)])
    return Day(found, said.getvalue(), out)


def test_every_stage_runs_and_leaves_its_lines(day: Day) -> None:
    found, tmp_path = day.found, day.out
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
    assert "three styles from folders to files: " in day.said
    assert "batch 2: not measured" in day.said


def test_every_step_is_measured_written_down_and_shown(day: Day) -> None:
    for text in (False, True):
        rows = {row["stage"]: row for row in day.lines("steps") if row["text"] == text}
        assert list(rows) == ["limit", "sd-scripts", "native", "native, 3 styles"]
        assert not [row for row in rows.values() if "failed" in row]
        assert "SD_SCRIPTS_DIR" in os.environ or "git submodule update" in rows["sd-scripts"]["left_out"]
        assert rows["native"]["operations"] > 2000
        assert rows["native, 3 styles"]["operations"] < 1.1 * rows["native"]["operations"]
        assert rows["native"]["synchronising"] == rows["native, 3 styles"]["synchronising"] == 0
        assert 0 < rows["native"]["images_per_s"] < rows["limit"]["images_per_s"]
    said = (day.out / "steps.log").read_text()
    for words in ("of the limit", "native, 3 styles", "UNet and text encoder"):
        assert words in said


def test_every_way_of_mixing_is_measured_on_the_same_images(day: Day) -> None:
    rows = day.lines("generation")
    switched, mixed, alone, composite = rows
    assert [row["way"] for row in rows] == ["switched (PEFT)", "mixed", "one adapter", "composite"]
    assert all(row["images"] == 3 and row["images_per_s"] > 0 and row["peak_mb"] > 0 for row in rows)
    assert (switched["unet_calls_a_step"], mixed["unet_calls_a_step"], alone["unet_calls_a_step"]) == (3, 1, 1)
    assert composite["operations_an_image_and_step"] > mixed["operations_an_image_and_step"]
    assert switched["operations_an_image_and_step"] > 2 * mixed["operations_an_image_and_step"]
    assert switched["grey_levels"] == 0
    assert 0 <= mixed["grey_levels"] < 0.1
    said = (day.out / "generation.log").read_text().splitlines()[1:]
    places = [number for number, line in enumerate(said) if line.startswith("{")]
    assert [json.loads(said[number]) for number in places] == rows
    assert "images/s" in "".join(said[places[-1] + 1 :]), "the table comes last"


def test_kernels_are_counted_and_added_up() -> None:
    from torch.autograd import DeviceType

    def event(device: Any, microseconds: float, *, marked: bool = False) -> Any:
        span = SimpleNamespace(elapsed_us=lambda: microseconds)
        return SimpleNamespace(device_type=device, time_range=span, is_user_annotation=marked)

    told = [event(DeviceType.CUDA, 5.0), event(DeviceType.CPU, 100.0), event(DeviceType.CUDA, 7.0)]
    told.append(event(DeviceType.CUDA, 12.0, marked=True))
    assert sum_kernels(told) == {"kernels": 2.0, "gpu_busy_s": pytest.approx(12e-6)}


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
    (tmp_path / "hangs.py").write_text(
        "import pathlib, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "pathlib.Path(__file__).with_name('pid').write_text(str(child.pid)); time.sleep(60)"
    )
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
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text())), "what it had started is gone, too"
    assert len((tmp_path / "out" / "lines.jsonl").read_text().splitlines()) == len(found)
    assert json.loads((tmp_path / "out" / "lines.jsonl").read_text().splitlines()[0])["bench"] == "gpu_day"
