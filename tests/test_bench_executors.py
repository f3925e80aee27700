"""The bench of the executors, on the one that is always there; the others' daemons are told apart by name."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from programs import put_on_path

from bench.executors import daemons, measure
from brushset.paths import RunsDir


def test_local_is_ready_at_once_and_has_no_daemons(tmp_path: Path) -> None:
    found = measure("local", RunsDir(tmp_path / "runs"), work_s=0.4)
    assert 0 <= float(str(found["ready_s"])) < 5
    assert 0 < float(str(found["first_line_s"])) < 30
    assert (found["rss_mib"], found["starter_mib"], found["daemons"]) == (0, 0, {})


def test_what_is_not_here_is_said_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_on_path(monkeypatch, tmp_path / "bin", "other", "")
    assert "sbatch is not on PATH" in str(measure("slurm", RunsDir(tmp_path / "runs"))["skipped"])


def test_daemons_are_an_engines_own_and_not_what_they_work_on(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {1: "slurmd", 2: "slurmstepd", 3: "slurmstepd", 4: "python"}

    class Process:
        def __init__(self, pid: int) -> None:
            self.pid = pid

        def name(self) -> str:
            return names[self.pid]

        def parents(self) -> list[Process]:
            return [Process(2)] if self.pid == 3 else []

    monkeypatch.setattr(psutil, "process_iter", lambda: [Process(pid) for pid in names])
    assert [process.pid for process in daemons("slurm", without=[2])] == [1]
    assert daemons("local") == []
