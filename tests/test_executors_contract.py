"""What every executor promises, held by all of them alike: local, a Ray cluster of two nodes, a Slurm of two nodes.

The runs are stand-ins (fake_run.py) that claim their folder as real ones do. Slurm is Debian's own, set up by
slurm_one_host.py where its packages are and we are root.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from brushset.executors.local import LocalExecutor
from brushset.paths import RunPaths
from brushset.protocols import Executor, Handle, Standing, Task
from brushset.workers import read_workers

FAKE_RUN = Path(__file__).with_name("fake_run.py")
MAX_RETRIES = 2
PATIENCE_S = 120.0


@contextlib.contextmanager
def local(_folder: Path) -> Iterator[Executor]:
    with contextlib.closing(
        LocalExecutor([{**os.environ, "CUDA_VISIBLE_DEVICES": gpu} for gpu in "01"], 2)
    ) as executor:
        yield executor


@contextlib.contextmanager
def ray(folder: Path) -> Iterator[Executor]:
    pytest.importorskip("ray", reason="Ray is not installed; uv sync --extra ray")
    from ray_two_nodes import two_nodes

    from brushset.executors.ray import RayExecutor
    from brushset.spec import RaySection

    with two_nodes() as cluster:
        settings = RaySection(address=cluster.address, gpus_per_run=1.0, cpus_per_run=0.5)
        with contextlib.closing(RayExecutor(settings, MAX_RETRIES, at_once=2)) as executor:
            yield executor


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[Executor]:
    from slurm_one_host import slurm_of_two_nodes, why_not

    if reason := why_not():
        pytest.skip(reason)
    from brushset.executors.slurm import SlurmExecutor
    from brushset.spec import SlurmSection

    with slurm_of_two_nodes(folder):
        yield SlurmExecutor(SlurmSection(time="10", cpus_per_task=1), MAX_RETRIES)


@pytest.fixture(scope="module", params=[local, ray, slurm], ids=lambda made: str(made.__name__))
def executor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executor]:
    with request.param(tmp_path_factory.mktemp("e")) as made:
        yield made


Make = Callable[..., Task]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes a task on a run folder of its own; the folder of all runs has a name that a shell would trip over."""

    def task(name: str, *words: str) -> Task:
        root = tmp_path / "it's a \"$(touch oops)\" %a, folder\n'" / "cartoon" / name
        root.mkdir(parents=True)
        return Task(RunPaths(root), (sys.executable, str(FAKE_RUN), str(root), *words), ("train",))

    return task


def wait(
    executor: Executor, handles: Sequence[Handle], until: Callable[[list[Standing]], bool] | None = None
) -> list[Standing]:
    """Polls until all are over, or as said."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        found = executor.poll(handles)
        if until(found) if until else all(each.over for each in found):
            return found
        if all(each.over for each in found):
            break
        time.sleep(0.2)
    logs = [executor.logs(handle) for handle in handles]
    raise AssertionError([executor.poll(handles), [log.read_text() for log in logs if log.is_file()]])


def started_again(handle: Handle, times: int) -> Callable[[list[Standing]], bool]:
    """Until a run has been started so often, and took a step since."""

    def is_so(_: list[Standing]) -> bool:
        trace = handle.task.run.root / "trace.txt"
        return trace.is_file() and len(trace.read_text().splitlines()) == times

    return is_so


def pids(handle: Handle) -> list[int]:
    return [int(word) for word in (handle.task.run.root / "pids").read_text().split()]


def alive(pids: Sequence[int]) -> list[int]:
    """Those that live."""
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
    return found


def states(standings: Sequence[Standing]) -> list[str]:
    return [each.state for each in standings]


def went_on_from(handle: Handle) -> list[int]:
    """The step from which each start went on."""
    return [int(line.split()[2]) for line in (handle.task.run.root / "trace.txt").read_text().splitlines()]


def test_runs_are_done_two_at_a_time_each_on_a_gpu_of_its_own(executor: Executor, make: Make) -> None:
    handles = executor.submit([make(f"run-{number}", "--steps", "10") for number in range(4)])
    most = 0

    def count(found: list[Standing]) -> bool:
        nonlocal most
        most = max(most, states(found).count("running"))
        return all(each.over for each in found)

    assert states(wait(executor, handles, count)) == ["finished"] * 4
    assert 1 <= most <= 2
    gpus = {(handle.task.run.root / "trace.txt").read_text().split()[0] for handle in handles}
    assert gpus == ({"0", "1"} if executor.name == "local" else {"0"})  # the nodes of the others have one each
    assert "goes on after step 0" in executor.logs(handles[0]).read_text()
    assert not [path for path in make("x").run.root.parent.parent.parent.iterdir() if path.name == "oops"]
    workers = read_workers(handles[0].task.run)
    assert workers.submission is not None
    assert workers.submission.executor == executor.name
    assert (len(workers.starts), workers.deaths) == (1, 0)


def test_a_verdict_on_what_was_asked_is_never_retried_and_stops_nobody_else(executor: Executor, make: Make) -> None:
    tasks = [make("fine"), make("usage", "--exit", "2"), make("input", "--exit", "3"), make("disk", "--exit", "4")]
    handles = executor.submit(tasks)
    found = wait(executor, handles)
    assert [(each.state, each.exit_code) for each in found] == [
        ("finished", 0), ("failed", 2), ("failed", 3), ("failed", 4),
    ]  # fmt: skip
    assert [len(read_workers(handle.task.run).starts) for handle in handles] == [1, 1, 1, 1]


def test_exit_code_0_is_not_believed(executor: Executor, make: Make) -> None:
    (handle,) = executor.submit([make("empty", "--silent")])
    (found,) = wait(executor, [handle])
    assert found.state == "failed"


def test_a_killed_run_goes_on_where_it_was(executor: Executor, make: Make) -> None:
    (handle,) = executor.submit([make("killed", "--steps", "30", "--seconds", "0.1")])
    wait(executor, [handle], lambda _: (handle.task.run.root / "state.json").is_file())
    os.kill(pids(handle)[0], signal.SIGKILL)
    (found,) = wait(executor, [handle])
    assert found.state == "finished"
    first, second = went_on_from(handle)
    assert first == 0
    assert second > 0
    assert read_workers(handle.task.run).deaths == 1


def test_sigterm_at_a_time_limit_is_no_failure(executor: Executor, make: Make) -> None:
    (handle,) = executor.submit([make("limited", "--steps", "30", "--seconds", "0.1")])
    wait(executor, [handle], lambda _: (handle.task.run.root / "state.json").is_file())
    os.kill(pids(handle)[0], signal.SIGTERM)
    seen: set[str] = set()

    def over(found: list[Standing]) -> bool:
        seen.update(states(found))
        return found[0].over

    wait(executor, [handle], over)
    assert seen <= {"waiting", "running", "finished"}
    assert went_on_from(handle)[1] > 0


def test_one_that_dies_every_time_is_given_up(executor: Executor, make: Make) -> None:
    (handle,) = executor.submit([make("doomed", "--steps", "1000")])
    for times in range(1, MAX_RETRIES + 2):
        wait(executor, [handle], started_again(handle, times))
        os.kill(pids(handle)[0], signal.SIGKILL)
    (found,) = wait(executor, [handle])
    assert (found.state, found.exit_code) == ("failed", None)
    assert "died" in found.words
    assert len(read_workers(handle.task.run).starts) == MAX_RETRIES + 1


def test_cancelling_stops_the_whole_tree_and_nothing_begins_afterwards(executor: Executor, make: Make) -> None:
    words = ("--steps", "1000")
    running, other, waiting = executor.submit([make("running", *words), make("other", *words), make("waiting", *words)])
    wait(executor, [running, other], lambda found: states(found) == ["running"] * 2)
    for handle in (running, other):
        wait(executor, [handle], started_again(handle, 1))
    executor.cancel(waiting)
    executor.cancel(running)
    executor.cancel(other)
    assert states(wait(executor, [running, other, waiting])) == ["cancelled"] * 3
    assert not alive([*pids(running), *pids(other)])
    assert not (waiting.task.run.root / "trace.txt").exists()
    assert len(read_workers(running.task.run).starts) == 1


def test_a_time_limit_saves_requeues_and_goes_on_by_slurms_own_clock(executor: Executor, make: Make) -> None:
    """Slurm looks at its limits every 30 s. That a real training goes on: docs/LOG.md."""
    if executor.name != "slurm":
        pytest.skip("it has no time limit")
    (handle,) = executor.submit([make("long", "--steps", "100000", "--seconds", "0.1")])
    wait(executor, [handle], lambda _: (handle.task.run.root / "state.json").is_file())
    subprocess.run(["scontrol", "update", f"JobId={handle.job}", "TimeLimit=1"], check=True, timeout=30)
    wait(executor, [handle], started_again(handle, 2))
    workers = read_workers(handle.task.run)
    end = workers.ending(workers.starts[0])
    assert end is not None
    assert (end.exit_code, end.passing) == (143, True)
    assert went_on_from(handle)[1] > 0
    executor.cancel(handle)
    assert states(wait(executor, [handle])) == ["cancelled"]


def test_what_a_lost_node_held_goes_on_elsewhere_and_its_zombie_publishes_nothing(
    executor: Executor, make: Make, request: pytest.FixtureRequest
) -> None:
    """The last of this file: a node is gone afterwards."""
    if executor.name == "local":
        pytest.skip("one machine is all there is")
    lose = LOSE[executor.name]
    words = ("--steps", "60", "--seconds", "0.2")
    handles = executor.submit([make("one", *words), make("two", *words)])
    for handle in handles:
        wait(executor, [handle], lambda _, handle=handle: (handle.task.run.root / "state.json").is_file())
    lost = lose(handles)
    before = pids(lost)
    seen: set[str] = set()

    def over(found: list[Standing]) -> bool:
        seen.update(states(found))
        return all(each.over for each in found)

    assert states(wait(executor, handles, over)) == ["finished"] * 2
    assert seen <= {"waiting", "running", "finished"}
    first, second = went_on_from(lost)
    assert first == 0
    assert second > 0
    assert not alive(before)
    assert (lost.task.run.weights / "x.safetensors").read_text() == f"of {pids(lost)[0]}"


def lose_ray_node(handles: Sequence[Handle]) -> Handle:
    """Cuts one node off: Ray is gone there, what it had started writes on."""
    from ray_two_nodes import CLUSTERS, kill_node

    (node,) = CLUSTERS[-1].worker_nodes
    raylet = node.all_processes["raylet"][0].process.pid
    (lost,) = [each for each in handles if raylet in {parent.pid for parent in psutil.Process(pids(each)[0]).parents()}]
    kill_node(node, spare=pids(lost))
    return lost


def lose_slurm_node(handles: Sequence[Handle]) -> Handle:
    """Loses all of one node's processes."""
    from slurm_one_host import lose_node

    lose_node("n1")
    deadline = time.monotonic() + PATIENCE_S
    while not (gone := [each for each in handles if not alive(pids(each))]):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return gone[0]


LOSE: dict[str, Callable[[Sequence[Handle]], Handle]] = {"ray": lose_ray_node, "slurm": lose_slurm_node}
