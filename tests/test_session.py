"""One run at a time per style; run.json tells how it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from brushset.errors import BrushsetError, EnvironmentProblem, InputError, Interrupted, StyleLocked
from brushset.log import EventLog
from brushset.manifest import read_manifest
from brushset.paths import PROJECT, RunsDir
from brushset.pipeline import Stage, StageContext
from brushset.records import Record
from brushset.session import Ask, run_style, style_lock
from brushset.spec import EvaluateSection, StyleSpec, TrainSection


class Done(Record):
    """Nothing to say."""


def stage(run: Callable[[StageContext], Done], name: str = "only", **how: Any) -> Stage[Done]:
    return Stage(name=name, record=Done, run=run, output=name, **how)


def write(ctx: StageContext) -> Done:
    (ctx.workdir / "x.txt").write_text("x")
    return Done()


def ask(**changes: Any) -> Ask:
    return Ask(StyleSpec(name="mine", trigger="t", **changes), {"a.png": "0" * 64}, "because")


def test_the_same_ask_finds_its_run_again_and_does_nothing(tmp_path: Path) -> None:
    runs = RunsDir(tmp_path)
    first = run_style(ask(), [stage(write)], runs, EventLog())
    again = run_style(ask(), [stage(write)], runs, EventLog())
    assert (first.worked, again.worked) == (1, 0)
    assert first.run == again.run
    manifest = read_manifest(first.run)
    assert manifest is not None
    assert (manifest.status, manifest.images) == ("done", {"a.png": "0" * 64})
    assert manifest.stages["only"]["outputs"] == {"only/x.txt": manifest.stages["only"]["outputs"]["only/x.txt"]}


def test_a_changed_setting_makes_a_new_run_that_takes_over_the_rest(tmp_path: Path) -> None:
    runs = RunsDir(tmp_path)
    run_style(ask(), [stage(write)], runs, EventLog())
    changed = ask(evaluate=EvaluateSection(steps=3))
    heard: list[str] = []
    other = run_style(
        changed, [stage(write)], runs, EventLog(lambda _event, fields: heard.append(str(fields.get("reason"))))
    )
    assert any(reason.startswith("taken from run") for reason in heard)
    assert len(runs.runs_of("mine")) == 2
    latest = runs.latest("mine")
    assert latest is not None
    assert latest.run_id == other.run.run_id


def test_how_a_training_is_watched_is_no_other_run(tmp_path: Path) -> None:
    runs = RunsDir(tmp_path)
    reads_train = stage(write, reads=("train",))
    first = run_style(ask(), [reads_train], runs, EventLog())
    watched = ask(train=TrainSection(save_state_minutes=1.0, stall_minutes=1.0, stall_ends=True))
    again = run_style(watched, [reads_train], runs, EventLog())
    assert (again.run, again.worked) == (first.run, 0)
    assert run_style(ask(train=TrainSection(seed=1)), [reads_train], runs, EventLog()).run != first.run


@pytest.mark.parametrize(
    ("raised", "expected", "status", "code"),
    [
        (InputError("no images"), InputError, "failed", 3),
        (OSError(28, "No space left on device", "/full"), EnvironmentProblem, "failed", 4),
        (ZeroDivisionError("oops"), BrushsetError, "failed", 1),
        (Interrupted(signal.SIGTERM), Interrupted, "interrupted", 143),
        (Interrupted(signal.SIGINT), Interrupted, "interrupted", 130),
    ],
)
def test_how_it_ended_is_written_down(
    tmp_path: Path, raised: BaseException, expected: type[BrushsetError | Interrupted], status: str, code: int
) -> None:
    def fail(ctx: StageContext) -> Done:
        raise raised

    runs = RunsDir(tmp_path)
    with pytest.raises(expected) as caught:
        run_style(ask(), [stage(fail)], runs, EventLog())
    assert caught.value.exit_code == code
    run = runs.latest("mine")
    assert run is not None
    manifest = read_manifest(run)
    assert manifest is not None
    assert manifest.status == status
    assert manifest.error == str(caught.value)
    if code in {1, 4}:
        assert type(raised).__name__ in (run.logs / "error.log").read_text()


HOLDING = """
    import sys; sys.path.insert(0, sys.argv[1])
    from pathlib import Path
    from brushset.paths import RunsDir
    from brushset.session import style_lock
    with style_lock(RunsDir(Path(sys.argv[2])), "mine"):
        print("held", flush=True)
        sys.stdin.read()
"""


def test_a_second_run_of_a_style_is_refused_and_a_killed_one_frees_it(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", textwrap.dedent(HOLDING), str(PROJECT), str(tmp_path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StyleLocked, match=str(holder.pid)) as caught:
            run_style(ask(), [stage(write)], RunsDir(tmp_path), EventLog())
        assert caught.value.exit_code == 75
        os.kill(holder.pid, signal.SIGKILL)
    with style_lock(RunsDir(tmp_path), "mine"):
        pass


def test_what_a_killed_run_left_half_done_is_swept(tmp_path: Path) -> None:
    runs = RunsDir(tmp_path)
    first = run_style(ask(), [stage(write)], runs, EventLog())
    (first.run.root / ".tmp-only-1").mkdir()
    run_style(ask(), [stage(write)], runs, EventLog())
    assert not list(first.run.root.glob(".tmp-*"))


def test_events_are_kept_as_json_lines(tmp_path: Path) -> None:
    import json

    outcome = run_style(ask(), [stage(write)], RunsDir(tmp_path), EventLog())
    events = [json.loads(line) for line in outcome.run.events.read_text().splitlines()]
    assert [event["event"] for event in events] == ["run_start", "stage_start", "stage_end", "run_end"]
    assert {event["style"] for event in events} == {"mine"}


def test_what_was_kept_to_go_on_from_goes_once_its_training_is_on_record(tmp_path: Path) -> None:
    def keep(ctx: StageContext) -> Done:
        (ctx.run.attempts / ctx.digest[:12]).mkdir(parents=True, exist_ok=True)
        return write(ctx)

    def die(ctx: StageContext) -> Done:
        keep(ctx)
        raise InputError("no")

    runs = RunsDir(tmp_path)
    with pytest.raises(InputError):
        run_style(ask(), [stage(die, "train")], runs, EventLog())
    (run,) = runs.runs_of("mine")
    assert len(list(run.attempts.iterdir())) == 1
    run_style(ask(), [stage(keep, "train")], runs, EventLog())
    assert not run.attempts.exists()
    with pytest.raises(InputError):
        run_style(ask(), [stage(die, "train", version=2)], runs, EventLog())  # another training: the record is not its
    assert len(list(run.attempts.iterdir())) == 1
