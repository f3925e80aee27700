"""A run is one process's at a time; who was given up, or is on a machine that was, publishes nothing more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import psutil
import pytest

from brushset import claims, workers
from brushset.claims import claim_run
from brushset.errors import BrushsetError, EnvironmentProblem, InputError, Interrupted, RunTaken, TrainerFailed
from brushset.log import EventLog, silent
from brushset.paths import RunPaths, RunsDir
from brushset.pipeline import Stage, StageContext
from brushset.records import Record
from brushset.session import Ask, prepare_run, run_style
from brushset.spec import StyleSpec
from brushset.workers import append, event_of_ours, note_cancelled, note_submitted, read_workers

FAKE_RUN = Path(__file__).with_name("fake_run.py")


@pytest.fixture
def run(tmp_path: Path) -> RunPaths:
    root = tmp_path / "cartoon" / "one"
    root.mkdir(parents=True)
    return RunPaths(root)


@contextmanager
def working(run: RunPaths, submission: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """Another process at work on the run."""
    argv = [sys.executable, str(FAKE_RUN), str(run.root), "--steps", "1000", "--submission", submission]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL) as process:
        try:
            wait_for((run.root / "state.json").is_file)
            yield process
        finally:
            process.kill()
            for word in (run.root / "pids").read_text().split():
                if psutil.pid_exists(int(word)):
                    os.kill(int(word), signal.SIGKILL)


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextmanager
def on_machine(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if this were another machine, with a lock that does not reach from one to the other."""

    class NoLock(filelock.SoftFileLock):
        def _acquire(self) -> None:
            raise NotImplementedError

    with monkeypatch.context() as patched:
        patched.setattr("platform.node", lambda: name)
        patched.setattr(filelock, "FileLock", NoLock)
        yield


def test_a_second_caller_is_refused_with_75_and_told_whom_to_wait_for(run: RunPaths) -> None:
    with working(run) as process:
        with pytest.raises(RunTaken, match=f"process {process.pid} on") as caught, claim_run(run, silent):
            pass
        assert caught.value.exit_code == 75
        assert process.poll() is None
        answer = subprocess.run([sys.executable, str(FAKE_RUN), str(run.root)], capture_output=True, check=False)
        assert answer.returncode == 75


def test_after_a_kill_the_next_one_goes_on_at_once(run: RunPaths) -> None:
    with working(run) as process:
        process.kill()
        process.wait()
        with claim_run(run, silent) as claim:
            claim.check()
    assert read_workers(run).deaths == 1


def test_an_earlier_attempt_of_the_same_submission_is_stopped(run: RunPaths) -> None:
    note_submitted(run, submission="a", executor="slurm")
    with working(run, "a") as process:
        with claim_run(run, silent, submission="a") as claim:
            claim.check()
            process.wait(30)
        assert 143 in {event.exit_code for event in read_workers(run).events}
        (run.root / "state.json").unlink()
        with working(run, "b"), pytest.raises(RunTaken), claim_run(run, silent, submission="a"):
            pass


def test_a_worker_whose_executor_is_dead_is_stopped_and_of_a_batch_system_is_not(run: RunPaths) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from brushset.paths import RunPaths\n"
        "from brushset.workers import note_submitted; note_submitted(RunPaths(Path(sys.argv[2])), submission=sys.argv[3], executor=sys.argv[3])"
    )
    for executor, survives in (("slurm", True), ("local", False)):
        subprocess.run([sys.executable, "-c", code, str(FAKE_RUN.parents[1]), str(run.root), executor], check=True)
        (run.root / "state.json").unlink(missing_ok=True)
        with working(run, executor) as process:
            if survives:
                with pytest.raises(RunTaken), claim_run(run, silent):
                    pass
            else:
                with claim_run(run, silent):
                    process.wait(30)
                assert 143 in {event.exit_code for event in read_workers(run).events}


def test_of_two_that_start_at_once_one_is_refused(run: RunPaths) -> None:
    answers: list[str] = []
    barrier = threading.Barrier(8)

    def start() -> None:
        barrier.wait()
        try:
            with claim_run(run, silent):
                time.sleep(0.5)
                answers.append("worked")
        except RunTaken:
            answers.append("refused")

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == ["refused"] * 7 + ["worked"]
    assert len(read_workers(run).starts) == 1


def test_where_no_lock_holds_a_live_worker_of_this_machine_is_seen_all_the_same(
    run: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    import platform

    with on_machine(platform.node(), monkeypatch), working(run), pytest.raises(RunTaken), claim_run(run, silent):
        pass


class Done(Record):
    """Nothing to say."""


def test_a_machine_that_was_given_up_publishes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, spec = RunsDir(tmp_path), StyleSpec(name="mine", trigger="t")
    prepared = prepare_run(spec, {}, "because", runs)
    order = []

    def zombie(context: StageContext) -> Done:
        """Meanwhile another machine takes the run over, and finishes it."""
        (context.workdir / "x.txt").write_text("of the zombie")
        with on_machine("elsewhere", monkeypatch):
            run_style(Ask(spec, {}, "", run=prepared), [stage(survivor)], runs, EventLog())
        order.append("zombie ends")
        return Done()

    def survivor(context: StageContext) -> Done:
        (context.workdir / "x.txt").write_text("of the survivor")
        order.append("survivor")
        return Done()

    def stage(work: Callable[[StageContext], Done]) -> Stage[Done]:
        return Stage(name="only", record=Done, run=work, output="only")

    with on_machine("here", monkeypatch), pytest.raises(RunTaken, match="on elsewhere has taken this run over"):
        run_style(Ask(spec, {}, "", run=prepared), [stage(zombie)], runs, EventLog())
    assert order == ["survivor", "zombie ends"]
    assert (prepared.root / "only" / "x.txt").read_text() == "of the survivor"
    from brushset.manifest import read_manifest

    manifest = read_manifest(prepared)
    assert manifest is not None
    assert (manifest.status, manifest.error) == ("done", "")
    assert not list(prepared.root.glob(".tmp-*"))


def test_a_training_that_was_taken_over_or_cancelled_stops_at_its_next_steps(
    run: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "LOOK_EVERY_S", 0.0)
    heard: list[str] = []

    def train(meanwhile: Callable[[], None]) -> None:
        with claim_run(run, silent) as claim:
            emit = claim.watching(EventLog(lambda event, _: heard.append(event)))
            emit("train_step", step=1)
            meanwhile()
            emit("train_step", step=2)

    with pytest.raises(RunTaken):
        train(lambda: append(run, event_of_ours("started", by="another").model_copy(update={"host": "elsewhere"})))
    assert heard == ["train_step"]
    with pytest.raises(Interrupted) as caught:
        train(lambda: note_cancelled(run))
    assert caught.value.exit_code == 143
    assert read_workers(run).cancelled
    with claim_run(run, silent) as claim:  # by hand: it is wanted again
        claim.check()


def test_a_look_is_taken_only_every_few_seconds(run: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    with claim_run(run, silent) as claim:
        looks: list[int] = []
        monkeypatch.setattr(claims, "read_workers", lambda run: (looks.append(1), read_workers(run))[1])
        emit = claim.watching(silent)
        for step in range(100):
            emit("train_step", step=step)
    assert not looks


@pytest.mark.parametrize(
    ("error", "code", "passing"),
    [
        (None, 0, False),
        (InputError("x"), 3, False),
        (TrainerFailed("x"), 5, False),
        (TrainerFailed("killed by SIGKILL", passing=True), 5, True),
        (Interrupted(signal.SIGTERM), 143, True),
        (Interrupted(signal.SIGINT), 130, False),
        (ZeroDivisionError(), 1, False),
    ],
)
def test_how_a_stay_ended_is_written_down(run: RunPaths, error: BaseException | None, code: int, passing: bool) -> None:
    def work() -> None:
        with claim_run(run, silent):
            if error:
                raise error

    if error:
        with pytest.raises(type(error)):
            work()
    else:
        work()
    found = read_workers(run)
    assert (found.exit_code, found.deaths) == (code, int(passing))
    assert found.may_go_on(1) is passing
    assert found.worker is None


class Mount(NamedTuple):
    mountpoint: str
    fstype: str


def test_a_file_system_that_machines_share_warns(run: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[str, Any]] = []
    events = EventLog(lambda event, fields: heard.append((event, fields)))
    mounts = [Mount("/", "ext4"), Mount(str(run.root.parent), "nfs4"), Mount(str(run.root.parent) + "x", "ext4")]
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: mounts)
    with claim_run(run, events):
        pass
    assert [event for event, _ in heard] == ["warning"]
    assert "nfs4" in heard[0][1]["text"]
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: mounts[:1])
    with claim_run(run, events):
        pass
    assert len(heard) == 1


def test_a_line_that_a_dying_machine_left_half_written_spoils_no_other(run: RunPaths) -> None:
    note_submitted(run, submission="a", executor="local")
    with run.workers.open("a") as file:
        file.write('{"event":"started","time":1')
    with claim_run(run, silent) as claim:
        claim.check()
    assert [event.event for event in read_workers(run).events] == ["submitted", "started", "ended"]


def test_a_folder_that_cannot_be_written_says_so(run: RunPaths) -> None:
    run.workers.mkdir()
    with pytest.raises(EnvironmentProblem, match=r"workers\.jsonl"):
        note_cancelled(run)


def test_a_time_limit_is_no_death_and_one_at_once_is(run: RunPaths) -> None:
    for after in (workers.BRIEF_S + 1, 1.0):
        start = event_of_ours("started", by=str(after))
        append(run, start)
        append(
            run,
            start.model_copy(update={"event": "ended", "time": start.time + after, "exit_code": 143, "passing": True}),
        )
    found = read_workers(run)
    assert (len(found.starts), found.deaths) == (2, 1)
    assert found.may_go_on(1)
    assert not found.may_go_on(0)


def test_the_count_begins_anew_with_each_submission(run: RunPaths) -> None:
    for name in ("a", "b"):
        note_submitted(run, submission=name, executor="slurm")
        append(run, event_of_ours("started", by=name, submission=name))
        note_submitted(run, submission=name, executor="slurm", job="7_0")
    found = read_workers(run)
    assert [start.by for start in found.starts] == ["b"]
    assert found.submission is not None
    assert found.submission.job == "7_0"


def test_every_error_says_whether_the_machine_is_to_blame() -> None:
    assert not BrushsetError("x").passing
    assert BrushsetError("x", passing=True).passing
