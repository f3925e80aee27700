"""Several styles trained in one pass through the front door, for real, on the narrow base. What is stopped or killed is a
process of its own; the rest is called in this one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import front_door
import pytest
from PIL import Image
from safetensors.torch import load_file

from brushset.paths import PROJECT
from brushset.records import BaseFile

pytestmark = pytest.mark.slow

IMAGES = {"anime": 2, "cartoon": 4, "watercolor": 4}
SMALL = (
    "--smoke", "--engine", "native", "--until", "train", "--json",
    "--set", "train.network_dim=2", "--set", "dataset.holdout=0.0",
    "--set", "train.train_text_encoder=false", "--set", "train.save_every_n_epochs=100",
)  # fmt: skip


class Packed:
    """The command for three styles, and what it leaves."""

    def __init__(self, root: Path) -> None:
        self.runs = root / "runs"
        self.folders = {style: root / f"{style} art" for style in IMAGES}
        for style, count in IMAGES.items():
            self.folders[style].mkdir()
            for number in range(count):
                picture = Image.effect_noise((128, 128), 40 + 9 * number + len(style)).convert("RGB")
                picture.save(self.folders[style] / f"{number}.png")

    def words(self, *more: str, epochs: int = 2, runs: Path | None = None) -> list[str]:
        """The command's."""
        images = [word for style, folder in self.folders.items() for word in ("--images", f"{style}={folder}")]
        length = ["--epochs", str(epochs), "--set", "train.repeats=1"]
        return [*images, *SMALL, *length, *more, "--runs-dir", str(runs or self.runs)]

    def go(self, *more: str, code: int = 0, **how: Any) -> list[dict[str, Any]]:
        done = front_door.call(*self.words(*more, **how))
        assert done.returncode == code, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def stop_at(
        self, step: int, style: str, signum: int, *more: str, epochs: int
    ) -> tuple[int, str, list[dict[str, Any]]]:
        """Starts the command, and sends it a signal once the style has done a step; returns the exit code, stderr, and all
        that was told.
        """
        argv = [sys.executable, str(PROJECT / "orchestrate.py"), *self.words(*more, epochs=epochs)]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        told, sent = list[dict[str, Any]](), False
        try:
            for event in read(process):
                told.append(event)
                if event["event"] == "train_step" and event["style"] == style and event["step"] == step:
                    os.kill(process.pid, signum)
                    sent = True
                assert sent or event["event"] != "error", event
            errors = process.communicate(timeout=60)[1]
        finally:
            process.kill()
            process.communicate()
        return process.returncode, errors, told

    def manifest(self, style: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.runs / style / "latest" / "run.json").read_text())
        return found

    def record(self, style: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.runs / style / "latest" / "records" / "train.json").read_text())
        return found


def read(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    """What is told, to the end; the last line of one that is killed may be cut."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.endswith("}\n"):
            yield json.loads(line)


def steps(events: list[dict[str, Any]], style: str) -> list[int]:
    return [event["step"] for event in events if event["event"] == "train_step" and event["style"] == style]


@pytest.fixture
def packed(tmp_path: Path, tiny_base: BaseFile) -> Packed:
    return Packed(tmp_path)


def difference(found: Path, expected: Path) -> float:
    """Of all `up` weights, relative to how far they went from zero."""
    ours, theirs = load_file(found), load_file(expected)
    assert ours.keys() == theirs.keys()
    names = [name for name in theirs if name.endswith("up.weight")]
    apart = sum(((ours[name] - theirs[name]).double() ** 2).sum().item() for name in names)
    went = sum((theirs[name].double() ** 2).sum().item() for name in names)
    return (apart / went) ** 0.5


def test_three_styles_leave_what_each_leaves_alone(packed: Packed, tmp_path: Path) -> None:
    events = packed.go("--set", "train.save_precision=float")
    notes = [event["text"] for event in events if event["event"] == "note"]
    assert "trained in one pass: anime, cartoon, watercolor" in notes
    assert not [text for text in notes if "is trained after" in text], "the three that ship share a pass"
    assert "3 styles: 10 batches in 4 passes, 60 % fewer" in notes
    order = [event["style"] for event in events if event["event"] == "train_step"]
    assert order[:6] != sorted(order[:6]), "steps of all styles in turn"
    alone = tmp_path / "alone"
    apart = packed.go("--set", "train.save_precision=float", "--set", "train.pack=false", runs=alone)
    assert not [event for event in apart if "one pass" in str(event.get("text"))]
    for style, count in IMAGES.items():
        assert packed.manifest(style)["status"] == "partial"
        assert steps(events, style) == steps(apart, style) == list(range(1, count + 1))
        weights = f"{style}/latest/weights/{style}.safetensors"
        assert difference(packed.runs / weights, alone / weights) < 0.02
        record = packed.record(style)
        theirs = json.loads((alone / style / "latest/records/train.json").read_text())
        assert record["outputs"].keys() == theirs["outputs"].keys()
        assert {"imports", "load models", "latents", "training"} == set(record["data"]["phases"])
        ours, other = ({k: v for k, v in r["data"].items() if k not in CHANGING} for r in (record, theirs))
        assert ours == other
    times = next(event for event in events if event["event"] == "times")
    assert 0 < times["train"] <= times["to_files"] <= times["total"]
    assert times["train: training"] < times["train"]
    again = packed.go("--set", "train.save_precision=float", "--set", "train.pack=false")
    assert [event["reason"] for event in again if event["event"] == "stage_skip"] == ["unchanged"] * 15
    assert "train_step" not in {event["event"] for event in again}


def check_gone_on(events: list[dict[str, Any]], before: list[dict[str, Any]]) -> None:
    """Steps go on from where the command was before, of those styles that had not ended, or from a little earlier."""
    assert steps(events, "anime") == []
    for style in ("cartoon", "watercolor"):
        gone_on, next_one = steps(events, style), steps(before, style)[-1] + 1
        assert 1 < gone_on[0] <= next_one
        assert gone_on == list(range(gone_on[0], gone_on[-1] + 1))


CHANGING = {"weights_sha256", "losses", "seconds", "phases"}


def test_stopped_in_the_middle_the_same_command_goes_on(packed: Packed) -> None:
    often, before = ("--set", "train.save_state_minutes=0.000001"), list[dict[str, Any]]()
    for signum, step in ((signal.SIGINT, 16), (signal.SIGTERM, 19), (signal.SIGKILL, 22)):
        code, errors, events = packed.stop_at(step, "cartoon", signum, *often, epochs=12)
        assert code == (-9 if signum == signal.SIGKILL else 128 + signum), errors
        assert packed.record("anime")["data"]["steps"] == 12, "what had ended is on record"
        for style in ("cartoon", "watercolor"):
            assert not (packed.runs / style / "latest/records/train.json").exists()
        expected = "running" if signum == signal.SIGKILL else "interrupted"
        assert {packed.manifest(style)["status"] for style in IMAGES} == {expected}
        if before:
            check_gone_on(events, before)
        before = events
    events = packed.go(*often, epochs=12)
    check_gone_on(events, before)
    for style in ("cartoon", "watercolor"):
        assert steps(events, style)[-1] == 24
        assert [point["step"] for point in packed.record(style)["data"]["losses"]] == list(range(1, 25))
        assert not list((packed.runs / style / "latest").glob("attempts"))
        assert not list((packed.runs / style / "latest").glob(".tmp*"))
    assert {packed.manifest(style)["status"] for style in IMAGES} == {"partial"}


def test_a_style_without_images_fails_alone_and_is_told_once(packed: Packed) -> None:
    for picture in packed.folders["cartoon"].iterdir():
        picture.write_bytes(b"no image at all")
    events = packed.go(code=3)
    (error,) = [event for event in events if event["event"] == "error"]
    assert all(line.startswith("cartoon: ") for line in error["message"].splitlines())
    assert packed.manifest("cartoon")["status"] == "failed"
    for style in ("anime", "watercolor"):
        assert packed.manifest(style)["status"] == "partial"
        assert steps(events, style) == list(range(1, IMAGES[style] + 1))


def test_a_dry_run_says_what_is_trained_in_one_pass(packed: Packed) -> None:
    done = front_door.call(*packed.words("--dry-run"))
    assert done.returncode == 0, done.stderr
    assert "anime, cartoon, watercolor: trained in one pass" in done.stdout
    for more in (("--set", "train.pack=false"), ("--parallel", "3")):
        assert "one pass" not in front_door.call(*packed.words("--dry-run", *more)).stdout
    assert not packed.runs.exists()


def test_forced_all_are_trained_anew_in_one_pass(packed: Packed) -> None:
    packed.go()
    first = {style: packed.record(style) for style in IMAGES}
    events = packed.go("--force", "train")
    for style, count in IMAGES.items():
        assert steps(events, style) == list(range(1, count + 1))
        assert packed.record(style)["started_at"] > first[style]["started_at"]
