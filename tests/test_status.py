"""How a run stands, by its folder alone; nobody who is dead is said to run."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from sweep_case import make_run, record, say

import orchestrate
from brushset.cli import status
from brushset.cli.guard import guarded
from brushset.cli.lookafter.state import RunState, read_state
from brushset.paths import RunPaths, RunsDir
from brushset.workers import WorkerEvent, append, event_of_ours, note_cancelled, note_submitted

STEP = {"event": "train_step", "step": 40, "total": 100, "loss": 0.123, "it_per_s": 2.5, "eta_s": 24.0}


@pytest.fixture
def run(tmp_path: Path) -> RunPaths:
    return make_run(RunsDir(tmp_path / "runs"), status="running")


def state_of(run: RunPaths, now: float | None = None) -> RunState:
    found = read_state(run, now)
    assert found is not None
    return found


def started(run: RunPaths, **fields: Any) -> WorkerEvent:
    event = event_of_ours("started", by="me").model_copy(update=fields)
    append(run, event)
    return event


def of_a_dead_process(run: RunPaths, **fields: Any) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    created = psutil.Process(child.pid).create_time()
    child.wait()
    started(run, pid=child.pid, created=created, **fields)


def test_a_run_whose_process_lives_runs_and_says_where_and_how_far(run: RunPaths) -> None:
    started(run)
    say(run, {"event": "stage_start", "stage": "train"}, STEP)
    state = state_of(run)
    assert (state.state, state.stage, state.step["step"], state.attempts) == ("running", "train", 40, 1)
    assert state.where == f"{platform.node()}:{os.getpid()}"
    assert state.is_open


def test_a_stay_that_did_well_what_it_was_asked_is_no_failed_attempt(run: RunPaths) -> None:
    """As in a sweep, whose shared stages one of its runs does first."""
    for by, code in (("shared", 0), ("stopped", 143), ("last", 0)):
        started(run, by=by)
        append(run, event_of_ours("ended", by=by, exit_code=code))
    assert state_of(run).attempts == 2


def test_a_run_whose_process_is_gone_is_dead_whatever_run_json_says(run: RunPaths) -> None:
    of_a_dead_process(run)
    say(run, {"event": "stage_start", "stage": "train"}, STEP)
    state = state_of(run)
    assert (state.state, state.stage) == ("dead", "train")
    assert "is gone" in state.words
    assert not state.is_open


def test_who_died_under_an_executor_that_lives_is_begun_anew(run: RunPaths) -> None:
    note_submitted(run, submission="s", executor="local")
    of_a_dead_process(run, submission="s")
    assert state_of(run).state == "waiting"
    assert "executor local begins it anew" in state_of(run).words
    for _ in range(2):
        of_a_dead_process(run, submission="s")
    assert state_of(run).state == "dead"


def test_another_machines_run_runs_while_it_speaks_and_is_silent_after_that(run: RunPaths) -> None:
    started(run, host="node7", job="123")
    say(run, STEP)
    assert (state_of(run).state, state_of(run).job) == ("running", "123")
    late = state_of(run, time.time() + 12 * 60)
    assert (late.state, late.words) == ("silent", "silent for 12 min on node7, which cannot be asked from here")


def test_nobody_on_record_is_not_running(run: RunPaths) -> None:
    assert state_of(run).state == "dead"


def test_what_waits_says_whether_anybody_will_come(tmp_path: Path) -> None:
    waiting = make_run(RunsDir(tmp_path / "runs"), status="waiting")
    assert "nobody was asked" in state_of(waiting).words
    note_submitted(waiting, submission="s", executor="slurm", job="5_1")
    assert (state_of(waiting).state, state_of(waiting).job, state_of(waiting).words) == ("waiting", "5_1", "")
    gone = event_of_ours("submitted", submission="t", executor="local").model_copy(update={"pid": 4_000_000})
    append(waiting, gone)
    assert "executor local (process 4000000) is gone" in state_of(waiting).words


def test_a_cancelled_run_is_cancelled_until_it_is_submitted_anew(run: RunPaths) -> None:
    note_cancelled(run)
    assert state_of(run).state == "cancelled"
    note_submitted(run, submission="s", executor="local")
    assert state_of(run).state == "waiting"


def test_who_is_to_be_started_again_waits_and_who_was_refused_failed(run: RunPaths) -> None:
    note_submitted(run, submission="s", executor="local")
    append(run, event_of_ours("started", by="a", submission="s"))
    append(run, event_of_ours("ended", by="a", exit_code=143, passing=True))
    assert (state_of(run).state, state_of(run).attempts) == ("waiting", 1)


def test_the_end_of_long_events_is_enough_and_half_a_line_is_passed_over(run: RunPaths) -> None:
    started(run)
    say(run, {"event": "stage_start", "stage": "train"}, *[{**STEP, "step": step} for step in range(2000)])
    with run.events.open("a") as file:
        file.write('{"event": "train_st')
    assert state_of(run).step["step"] == 1999


def test_the_table_names_the_dead_and_the_json_holds_everything(
    run: RunPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    of_a_dead_process(run)
    record(run, "audit", {})
    where = ["status", "--runs-dir", str(run.root.parents[1])]
    assert guarded(orchestrate.app, where) == 0
    assert " dead " in capsys.readouterr().out
    assert guarded(orchestrate.app, [*where, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["state"], told["attempts"], told["folder"]) == ("dead", 1, str(run.root))
    assert {"stage", "step", "where", "executor", "job", "quiet_s", "words", "status", "run_id"} <= told.keys()


def test_a_narrow_screen_loses_columns_and_no_words(
    run: RunPaths, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    of_a_dead_process(run)
    monkeypatch.setattr(status.stdout, "_width", 60)
    assert guarded(orchestrate.app, ["status", "--runs-dir", str(run.root.parents[1])]) == 0
    said = capsys.readouterr().out
    assert f" {run.run_id} " in said
    assert "it/s" not in said
    assert "last sign" not in said
    assert "is gone, without a word; fix: orchestrate.py resume\n" in said


def test_logs_are_told_by_run_id_and_followed_by_what(run: RunPaths, capsys: pytest.CaptureFixture[str]) -> None:
    runs_dir = str(run.root.parents[1])
    run.logs.mkdir()
    run.train_log.write_text("".join(f"line {number}\n" for number in range(100)) + "bad \x1b[31m colour\n")
    assert guarded(orchestrate.app, ["logs", run.run_id[-4:], "-n", "2", "--runs-dir", runs_dir]) == 0
    assert capsys.readouterr().out.splitlines() == ["line 99", "bad \\x1b[31m colour"]
    assert guarded(orchestrate.app, ["logs", "cartoon", "--what", "error", "--runs-dir", runs_dir]) == 2
    assert guarded(orchestrate.app, ["logs", "anime", "--runs-dir", runs_dir]) == 2


def test_cancelling_a_run_that_nobody_works_on_keeps_executors_away(
    run: RunPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guarded(orchestrate.app, ["cancel", str(run.root), "--runs-dir", str(run.root.parents[1])]) == 0
    assert "nobody worked on it" in capsys.readouterr().out
    assert state_of(run).state == "cancelled"


def test_cancelling_stops_the_process_that_works_on_it(run: RunPaths, capsys: pytest.CaptureFixture[str]) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as child:
        started(run, pid=child.pid, created=psutil.Process(child.pid).create_time())
        assert guarded(orchestrate.app, ["cancel", str(run.root), "--runs-dir", str(run.root.parents[1])]) == 0
        assert child.wait(10) == -15
    assert "has stopped" in capsys.readouterr().out


def test_one_of_several_in_a_pass_is_not_cancelled_without_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = RunsDir(tmp_path / "runs")
    first, second = make_run(runs, seed=1), make_run(runs, seed=2)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as child:
        for each in (first, second):
            started(each, pid=child.pid, created=psutil.Process(child.pid).create_time())
        assert guarded(orchestrate.app, ["cancel", str(first.root), "--runs-dir", str(runs.root)]) == 2
        assert "trains 1 others in the same pass" in capsys.readouterr().err
        assert child.poll() is None
        child.kill()
