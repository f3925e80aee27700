"""Shares of a sweep's runs, one a GPU: each in one process, which is begun anew where the machine killed it."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from brushset.executors.local import LocalExecutor, divide_evenly
from brushset.executors.standing import run_task
from brushset.paths import PROJECT, RunPaths
from brushset.protocols import Handle, Standing, Task
from brushset.workers import read_workers

# As `run-one` on several folders: all claimed, then one after the other ends. What a folder holds says how.
SHARE = f"""#!{sys.executable}
import contextlib, os, sys, time
sys.path[:0] = [{str(PROJECT / "tests")!r}, {str(PROJECT)!r}]
import fake_run
from brushset.errors import BrushsetError, InputError
from pathlib import Path

words = sys.argv[sys.argv.index("run-one") + 1:]
runs = [fake_run.RunPaths(Path(word)) for word in words[:words.index("--until")]]
with contextlib.ExitStack() as stack:
    claims = {{}}
    for run in runs:
        own = stack.enter_context(contextlib.ExitStack())
        claims[run] = own, own.enter_context(fake_run.claim_run(run, fake_run.silent, submission=words[-1]))
        with (run.root / "trace.txt").open("a") as trace:
            trace.write(f"{{os.environ['CUDA_VISIBLE_DEVICES']}} {{os.getpid()}}\\n")
    for run, (own, claim) in claims.items():
        if (run.root / "dies").exists() or (run.root / "dies always").exists():
            (run.root / "dies").unlink(missing_ok=True)
            os.kill(os.getpid(), 9)
        while (run.root / "waits").exists():
            time.sleep(0.05)
        if (run.root / "fails").exists():
            claim.ended_with = InputError("a picture that cannot be read")
        else:
            fake_run.publish(run, claim)
        own.close()
    time.sleep(1.5 * any((run.root / "lingers").exists() for run in runs))
    print("said by the process of", len(runs))
"""


@pytest.fixture
def executor() -> Iterator[LocalExecutor]:
    slots = [{**os.environ, "CUDA_VISIBLE_DEVICES": gpu} for gpu in "01"]
    with contextlib.closing(LocalExecutor(slots, 2, partial(divide_evenly, count=2, weigh=lambda _: 1.0))) as made:
        yield made


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Task]:
    """A task on a folder of its own, which holds the file that says how it ends."""
    program = tmp_path / "python"
    program.write_text(SHARE)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)

    def task(name: str, ending: str = "") -> Task:
        root = tmp_path / "runs" / "it's" / name
        root.mkdir(parents=True)
        if ending:
            (root / ending).touch()
        return run_task(RunPaths(root), ["train"], str(program))

    return task


def wait(executor: LocalExecutor, handles: list[Handle]) -> list[Standing]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = executor.poll(handles)
        if all(each.over for each in found):
            return found
        time.sleep(0.05)
    raise AssertionError(executor.poll(handles))


def trace(handle: Handle) -> list[list[str]]:
    return [line.split() for line in (handle.task.run.root / "trace.txt").read_text().splitlines()]


def test_each_gpu_has_one_process_for_its_share_and_a_failure_stops_no_other(
    executor: LocalExecutor, make: Callable[..., Task]
) -> None:
    handles = executor.submit([make("a"), make("b"), make("c", "fails"), make("d")])
    found = wait(executor, handles)
    assert [(each.state, each.exit_code) for each in found] == [
        ("finished", 0), ("finished", 0), ("failed", 3), ("finished", 0),
    ]  # fmt: skip
    gpus = [gpu for ((gpu, _),) in map(trace, handles)]
    assert gpus == ["0", "1", "0", "1"]
    assert len({pid for ((_, pid),) in map(trace, handles)}) == 2
    executor.close()
    assert {executor.logs(handle).read_text() for handle in handles} == {"said by the process of 2\n"}


def test_a_share_that_was_killed_goes_on_without_what_is_done(
    executor: LocalExecutor, make: Callable[..., Task]
) -> None:
    handles = executor.submit([make("a"), make("other"), make("b", "dies"), make("more"), make("c")])
    assert {each.state for each in wait(executor, handles)} == {"finished"}
    assert [len(trace(handle)) for handle in handles] == [1, 1, 2, 1, 2]
    assert read_workers(handles[2].task.run).deaths == 1


def test_whoever_kills_its_process_every_time_is_given_up_alone(
    executor: LocalExecutor, make: Callable[..., Task]
) -> None:
    handles = executor.submit([make("poison", "dies always"), make("other"), make("beside")])
    found = wait(executor, handles)
    assert [each.state for each in found] == ["failed", "finished", "finished"]
    assert "process died" in found[0].words
    assert [len(trace(handle)) for handle in handles] == [3, 1, 2]


def test_what_was_submitted_anew_is_not_begun_again_for_the_earlier_submission(
    executor: LocalExecutor, make: Callable[..., Task]
) -> None:
    """A run is over before its process is: whoever asked may ask for more of it by then, as a sweep does."""
    task = make("a", "lingers")
    (first,) = executor.submit([task])
    wait(executor, [first])
    (task.run.root / "waits").touch()
    (again,) = executor.submit([task])
    deadline = time.monotonic() + 60
    while not task.run.worker_log(1).read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    (task.run.root / "waits").unlink()
    assert wait(executor, [again])[0].state == "finished"
    assert [path.name for path in sorted(task.run.logs.glob("*.log"))] == ["worker-1.log", "worker-2.log"]


def test_one_that_was_cancelled_before_its_turn_does_not_begin(
    executor: LocalExecutor, make: Callable[..., Task]
) -> None:
    busy = executor.submit([make("a", "waits"), make("b", "waits")])
    (later,) = executor.submit([make("later")])
    executor.cancel(later)
    for handle in busy:
        (handle.task.run.root / "waits").unlink()
    assert [each.state for each in wait(executor, [*busy, later])] == ["finished", "finished", "cancelled"]
    assert not (later.task.run.root / "trace.txt").exists()


def test_shares_weigh_about_the_same_and_keep_their_order(make: Callable[..., Task]) -> None:
    handles = [Handle(make(name), "s") for name in "abcde"]
    weights = dict(zip(handles, (1.0, 5.0, 2.0, 1.0, 1.0), strict=True))
    shares = divide_evenly(handles, 2, weights.__getitem__)
    assert [[each.task.run.run_id for each in share] for share in shares] == [["b"], ["a", "c", "d", "e"]]
    assert len(divide_evenly(handles[:1], 4, weights.__getitem__)) == 1
