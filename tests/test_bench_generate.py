"""The bench of mixes runs whole at a tiny size, and finds what it is there to find."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import generate
from brushset.records import BaseFile


def test_it_measures_every_way_and_the_same_images(
    tiny_base: BaseFile, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [
        "--device",
        "cpu",
        "--base",
        tiny_base.name,
        "--mixes",
        "3",
        "--prompts",
        "1",
        "--steps",
        "2",
        "--batch",
        "6",
    ]
    rows = generate.main([*argv, "--px", "64", "--rank", "2", "--out", str(tmp_path / "rows.jsonl")])
    switched, mixed, alone, composite = rows
    assert [row["way"] for row in rows] == ["switched (PEFT)", "mixed", "one adapter", "composite"]
    assert all(row["images"] == 3 and row["images_per_s"] > 0 and row["peak_mb"] > 0 for row in rows)
    assert (switched["unet_calls_a_step"], mixed["unet_calls_a_step"], alone["unet_calls_a_step"]) == (3, 1, 1)
    assert composite["operations_an_image_and_step"] > mixed["operations_an_image_and_step"]
    assert switched["operations_an_image_and_step"] > 2 * mixed["operations_an_image_and_step"]
    assert switched["grey_levels"] == 0
    assert 0 <= mixed["grey_levels"] < 0.1
    assert [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == rows
    out = capsys.readouterr().out.splitlines()
    assert [json.loads(line) for line in out[:4]] == rows
    assert "images/s" in "\n".join(out[4:])


def test_a_full_box_ends_a_stage(tiny_base: BaseFile) -> None:
    argv = [
        "--device",
        "cpu",
        "--base",
        tiny_base.name,
        "--mixes",
        "2",
        "--prompts",
        "2",
        "--steps",
        "1",
        "--batch",
        "1",
    ]
    rows = generate.main([*argv, "--px", "64", "--rank", "1", "--box", "0"])
    assert {row["images"] for row in rows} == {1}
