"""Several styles at once through the front door, for real, on the narrow base."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from brushset.bases.header import read_header
from brushset.paths import PROJECT
from brushset.records import BaseFile

pytestmark = pytest.mark.slow

STYLES = ("anime", "cartoon", "watercolor")
SMALL = (
    "--smoke",
    "--engine",
    "native",
    "--until",
    "train",
    "--set",
    "train.network_dim=2",
    "--set",
    "dataset.holdout=0.0",
)


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Four images a style."""
    found = {}
    for style in STYLES:
        found[style] = tmp_path / f"{style} art"
        found[style].mkdir()
        for number in range(4):
            picture = Image.effect_noise((200, 160), 40 + 9 * number).convert("RGB")
            picture.save(found[style] / f"{number}.png")
    return found


def start(tmp_path: Path, folders: dict[str, Path], *more: str) -> subprocess.Popen[str]:
    images = [word for style, folder in folders.items() for word in ("--images", f"{style}={folder}")]
    argv = [
        sys.executable,
        str(PROJECT / "orchestrate.py"),
        *images,
        *SMALL,
        "--runs-dir",
        str(tmp_path / "runs"),
        *more,
    ]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def manifest(tmp_path: Path, style: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "runs" / style / "latest" / "run.json").read_text())
    return found


def test_a_poisoned_style_fails_alone_and_is_told_once(
    tmp_path: Path, folders: dict[str, Path], tiny_base: BaseFile
) -> None:
    del folders["anime"]
    for picture in folders["cartoon"].iterdir():
        picture.write_bytes(b"no image at all")
    said, errors = (process := start(tmp_path, folders, "--parallel", "2")).communicate(timeout=300)
    assert process.returncode == 3, errors
    assert said == ""
    assert len(read_header(tmp_path / "runs/watercolor/latest/weights/watercolor.safetensors").tensors) == 792
    assert manifest(tmp_path, "watercolor")["status"] == "partial"
    assert "watercolor    ✓ train" in errors
    told = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert told
    assert all(line.startswith("error: cartoon: ") for line in told)
    assert len(set(told)) == len(told)
    assert manifest(tmp_path, "cartoon")["status"] == "failed"


def test_a_signal_ends_all_styles_and_leaves_nobody(
    tmp_path: Path, folders: dict[str, Path], tiny_base: BaseFile
) -> None:
    del folders["anime"]
    endless = ("--set", "train.max_steps=100000", "--set", "train.save_every_n_epochs=100000")
    process = start(tmp_path, folders, "--parallel", "2", "--json", *endless)
    try:
        wait_for_training(process, styles=2)
        family = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGTERM)  # to us alone: a terminal's Ctrl-C would reach the children too
        rest, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 143, errors
    assert len(family) >= 2
    assert not [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    told = [json.loads(line) for line in rest.splitlines() if '"event": "error"' in line]
    assert [event["exit_code"] for event in told] == [143], "one word for the whole command"
    for style in folders:
        assert manifest(tmp_path, style)["status"] == "interrupted"
        assert not (tmp_path / "runs" / style / "parallel.process.json").exists()


def wait_for_training(process: subprocess.Popen[str], *, styles: int) -> None:
    """Reads events until so many styles have done a step."""
    assert process.stdout is not None
    training: set[str] = set()
    while len(training) < styles and (line := process.stdout.readline()):
        event = json.loads(line)
        assert event["event"] != "error", event
        training |= {event["style"]} if event["event"] == "train_step" else set()
    assert len(training) == styles
