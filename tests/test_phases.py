"""Where a command's time went: what several styles do at the same time counts once."""

from __future__ import annotations

import pytest

from brushset.cli import phases
from brushset.cli.phases import PhaseTimes


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A process that began at 100 s."""
    now = {"s": 100.0}
    monkeypatch.setattr(phases.time, "time", lambda: now["s"])
    monkeypatch.setattr(phases.psutil.Process, "create_time", lambda _: 100.0)
    return now


def at(clock: dict[str, float], times: PhaseTimes, second: float, event: str, **fields: object) -> None:
    clock["s"] = second
    times(event, fields)


def test_what_styles_do_together_counts_once(clock: dict[str, float]) -> None:
    times = PhaseTimes()
    at(clock, times, 102, "run_start")
    at(clock, times, 104, "stage_end", stage="audit", seconds=2.0)
    at(clock, times, 105, "run_start")
    at(clock, times, 107, "stage_end", stage="audit", seconds=2.0)
    for _ in range(2):
        at(clock, times, 110, "phase", what="imports", seconds=3.0)
    at(clock, times, 120, "stage_end", stage="train", seconds=13.0)
    at(clock, times, 125, "stage_end", stage="train", seconds=18.0)
    clock["s"] = 130
    assert times.seconds() == {
        "total": 30.0, "to_files": 25.0, "start-up": 2.0, "audit": 4.0, "train": 18.0, "train: imports": 3.0,
    }  # fmt: skip
    assert times.line() == (
        "folder to 2 files 25.0 s, command 30.0 s: start-up 2.0 · audit 4.0 · train 18.0 (imports 3.0) · other 6.0"
    )


def test_where_nothing_was_done_nothing_is_said(clock: dict[str, float]) -> None:
    times = PhaseTimes()
    at(clock, times, 102, "run_start")
    at(clock, times, 102, "stage_skip", stage="audit", reason="unchanged")
    assert times.line() == ""
    assert times.seconds() == {}


def test_without_a_training_no_file_is_counted(clock: dict[str, float]) -> None:
    times = PhaseTimes()
    at(clock, times, 101, "run_start")
    at(clock, times, 103, "stage_end", stage="report", seconds=1.5)
    assert times.line() == "command 3.0 s: start-up 1.0 · report 1.5 · other 0.5"
