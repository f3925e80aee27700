"""The bench of the training step on the narrow model; it is run whole by tests/test_gpu_day.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import train
from bench.native_step import Work, make_step
from bench.timing import count_flops
from brushset.records import BaseFile


@pytest.fixture
def small(tiny_base: BaseFile, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(train, "resolve_base", lambda *_: tiny_base)
    return ["--device", "cpu", "--px", "64", "--batches", "1", "--rank", "2", "--repeats", "1"]


def by_stage(found: list[dict[str, Any]], *, text: bool) -> dict[str, dict[str, Any]]:
    return {row["stage"]: row for row in found if row["text"] == text}


def test_a_stage_that_fails_is_told_and_ends_no_other(
    tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> dict[str, Any]:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(train, "measure_limit", fail)
    monkeypatch.setattr(train.SdScripts, "measure", fail)
    monkeypatch.setattr(train, "measure_native", lambda *_: {"left_out": "elsewhere"})
    found = train.main([*small, "--out", str(tmp_path / "lines.jsonl")])
    assert [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()] == found
    assert by_stage(found, text=False)["limit"]["failed"] == "RuntimeError: out of luck"
    assert by_stage(found, text=False)["native"]["left_out"] == "elsewhere"
    assert "out of luck" in capsys.readouterr().out


def test_no_stage_begins_after_the_minutes_are_over(small: list[str]) -> None:
    found = train.main([*small, "--minutes", "0"])
    assert {row["left_out"] for row in found} == {"0 minutes were over"}


def test_flops_are_those_of_three_steps_worth_for_three_styles(tiny_base: BaseFile) -> None:
    work = Work(tiny_base, 64, 1, 2)
    one, three = (count_flops(make_step(each)) for each in (work, work.of(styles=3)))
    assert three == pytest.approx(3 * one, rel=0.01)


def test_stages_can_be_picked(small: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "measure_native", lambda *_: {"left_out": "elsewhere"})
    found = train.main([*small, "--compile", "--only", "native, compiled"])
    assert [row["stage"] for row in found] == ["native, compiled"] * 2


def test_ways_are_left_out_at_batches_that_are_not_asked_for(small: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "run_stage", lambda *_: {"left_out": "elsewhere"})
    found = train.main([*small, "--batches", "1", "2", "--packed", "2", "--native-text", "1"])
    ours = [(row["batch"], row["text"], row["styles"]) for row in found if row["stage"].startswith("native")]
    assert ours == [(1, False, 1), (1, True, 1), (2, False, 1), (2, False, 3)]
    assert [(row["batch"], row["text"]) for row in found if row["stage"] == "sd-scripts"] == [
        (1, False), (1, True), (2, False), (2, True)
    ]  # fmt: skip


@pytest.mark.vendor
def test_sd_scripts_own_step_is_beside_them(small: list[str], sd_scripts: Any) -> None:
    found = [row for row in train.main([*small, "--batches", "1", "2"]) if row["stage"] in {"sd-scripts", "native"}]
    for batch in (1, 2):
        theirs, ours = ([row for row in found if (row["stage"], row["batch"], row["text"]) == (name, batch, False)]
                        for name in ("sd-scripts", "native"))  # fmt: skip
        assert theirs[0]["operations"] > 2 * ours[0]["operations"]
        assert theirs[0]["synchronising"] >= 2
