"""The bench of mixes at a tiny size; it is run whole by tests/test_gpu_day.py."""

from __future__ import annotations

import json
from pathlib import Path

from bench import generate
from brushset.records import BaseFile


def test_a_full_box_ends_a_stage_and_ways_can_be_picked(tiny_base: BaseFile, tmp_path: Path) -> None:
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
    rows = generate.main([*argv, "--px", "64", "--rank", "1", "--box", "0", "--only", "switched (PEFT)", "mixed",
                          "--out", str(tmp_path / "rows.jsonl")])  # fmt: skip
    assert [(row["way"], row["images"]) for row in rows] == [("switched (PEFT)", 1), ("mixed", 1)]
    assert [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == rows
