"""A queue on disk: in order, through failures, after a reboot, one worker at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import orchestrate
from brushset.cli import queue as queueing
from brushset.cli.guard import guarded
from brushset.errors import EnvironmentProblem, RunTaken, TrainerFailed, UsageError
from brushset.queue_folder import QueueFolder

HOLD = """
import sys, time
from pathlib import Path
from brushset.queue_folder import QueueFolder
with QueueFolder(Path(sys.argv[1])).working():
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def runs_dir(tmp_path: Path) -> str:
    return str(tmp_path / "runs")


@pytest.fixture
def folder(runs_dir: str) -> QueueFolder:
    return QueueFolder(Path(runs_dir) / ".queue")


def call(*words: str) -> int:
    return guarded(orchestrate.app, words)


def add(runs_dir: str, *words: str) -> int:
    return call("queue", "add", "--style", "cartoon", "--smoke", "--engine", "native", "--runs-dir", runs_dir, *words)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, int]], list[list[str]]]:
    """Stands in for the commands of entries: each ends as its --seed says."""

    def endings(codes: dict[str, int]) -> list[list[str]]:
        told: list[list[str]] = []

        def run(argv: Sequence[str], *, on_line: Callable[[str], None], **_: Any) -> None:
            told.append(list(argv))
            code = codes.get(argv[argv.index("--seed") + 1], 0)
            if code:
                on_line("error: what is wrong; fix: that")
                on_line("  a trace")
                error = TrainerFailed("python: it said so")
                error.code = code
                raise error

        monkeypatch.setattr(queueing, "run_command", run)
        return told

    return endings


def test_entries_are_done_in_order_and_a_failure_stops_no_other(
    runs_dir: str,
    folder: QueueFolder,
    commands: Callable[[dict[str, int]], list[list[str]]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    for seed in "123":
        assert add(runs_dir, "--seed", seed) == 0
    told = commands({"2": 3})
    assert call("queue", "run", "--runs-dir", runs_dir) == 7
    assert [argv[argv.index("--seed") + 1] for argv in told] == ["1", "2", "3"]
    assert [(entry.number, entry.exit_code, entry.said) for entry in folder.entries()] == [
        (2, 3, "what is wrong; fix: that")
    ]
    capsys.readouterr()
    assert call("queue", "list", "--runs-dir", runs_dir) == 0
    assert "failed (3)" in capsys.readouterr().out
    told = commands({})
    assert call("queue", "run", "--runs-dir", runs_dir) == 0
    assert len(told) == 1
    assert folder.entries() == []


def test_an_entry_is_the_command_as_it_was_given_from_where_it_was_given(runs_dir: str, folder: QueueFolder) -> None:
    assert add(runs_dir, "--set", "train.network_dim=4", "--set", 'base.model="a b"', "--until", "caption") == 0
    (entry,) = folder.entries()
    words = list(entry.words)
    assert words[words.index("--style") + 1] == "cartoon"
    assert [words[at + 1] for at, word in enumerate(words) if word == "--set"] == [
        "train.network_dim=4",
        'base.model="a b"',
    ]
    assert words[words.index("--until") + 1] == "caption"
    assert entry.folder == str(Path.cwd())


def test_several_styles_all_of_them_and_sweeps_can_wait_too(
    runs_dir: str, folder: QueueFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ("--smoke", "--engine", "native", "--runs-dir", runs_dir)
    assert call("queue", "add", "--style", "cartoon", "--style", "anime", *small) == 0
    assert call("queue", "add", "all", *small) == 0
    capsys.readouterr()
    varied = ("--grid", "train.network_dim=2,4", "--seeds", "3")
    assert call("queue", "add", "--style", "cartoon", *small, "sweep", *varied, "--yes") == 0
    assert "6 runs, 12 steps" in capsys.readouterr().out
    same = ("--smoke", "--engine", "native", "--runs-dir", runs_dir)
    assert [entry.words for entry in folder.entries()] == [
        ("--style", "cartoon", "--style", "anime", *same),
        ("all", *same),
        ("sweep", "--style", "cartoon", *same, *varied),
    ]
    assert call("queue", "add", "sweep", "--style", "cartoon", *small, *varied, "--dry-run") == 0
    assert call("queue", "add", "sweep", "--style", "cartoon", *small) == 2
    assert "nothing varies" in capsys.readouterr().err
    assert call("queue", "add", "--runs-dir", runs_dir) == 2
    assert len(folder.entries()) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "train.network_dmi=4"], "did you mean"),
        (["--until", "nowhere"], "is no stage"),
        (["--style", "nobody"], "no such style"),
    ],
)
def test_what_cannot_go_well_is_refused_when_it_is_added(
    words: list[str], said: str, runs_dir: str, folder: QueueFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert add(runs_dir, *words) == 2
    assert said in capsys.readouterr().err
    assert folder.entries() == []


def test_numbers_are_not_used_again_and_removing_one_that_is_not_there_says_which_are(folder: QueueFolder) -> None:
    first, second = (folder.add(["--style", name], Path("/")) for name in ("a", "b"))
    folder.log(second).parent.mkdir()
    folder.log(second).write_text("it ran")
    folder.remove(second.number)
    assert folder.add(["--style", "c"], Path("/")).number == 3
    with pytest.raises(UsageError, match="there are: 1, 3"):
        folder.remove(second.number)
    assert first.number == 1


def test_two_processes_never_work_through_it_at_once_and_a_killed_one_frees_it(
    folder: QueueFolder, runs_dir: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.add(["--style", "a"], Path("/"))
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder.root)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        assert folder.worker() == child.pid
        with pytest.raises(RunTaken, match=str(child.pid)), folder.working():
            pass
        assert call("queue", "run", "--runs-dir", runs_dir) == 75
        child.kill()
    assert folder.worker() is None
    with folder.working():
        pass


def test_what_was_being_done_when_the_power_went_is_done_again(
    runs_dir: str, folder: QueueFolder, commands: Callable[[dict[str, int]], list[list[str]]]
) -> None:
    assert add(runs_dir, "--seed", "1") == 0
    (entry,) = folder.entries()
    folder.save(entry.model_copy(update={"started_at": 5.0}))
    told = commands({})
    assert call("queue", "run", "--runs-dir", runs_dir) == 0
    assert len(told) == 1


def test_what_cannot_be_started_is_told_and_the_next_one_goes_on(
    runs_dir: str, folder: QueueFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert add(runs_dir, "--seed", "1") == 0

    def broken(*_: object, **__: object) -> None:
        raise EnvironmentProblem("/nowhere: no such folder")

    monkeypatch.setattr(queueing, "run_command", broken)
    assert call("queue", "run", "--runs-dir", runs_dir) == 7
    assert [(entry.exit_code, entry.said) for entry in folder.entries()] == [(4, "/nowhere: no such folder")]


def test_a_real_command_is_run_to_its_end(runs_dir: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert add(runs_dir, "--images", str(tmp_path), "--until", "audit", "--json") == 0
    assert json.loads(capsys.readouterr().out)["number"] == 1
    assert call("queue", "run", "--runs-dir", runs_dir) == 7  # a folder without images
    assert "failed (3)" in (call("queue", "list", "--runs-dir", runs_dir), capsys.readouterr().out)[1]
    assert call("queue", "remove", "1", "--runs-dir", runs_dir) == 0
