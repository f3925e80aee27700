"""Many images: the same results in any number of processes, and a clean end however it ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from brushset.audit import pool
from brushset.audit.measure import MeasureLimits
from brushset.audit.pool import measure_all
from brushset.errors import EnvironmentProblem
from brushset.log import silent
from brushset.paths import PROJECT

LIMITS = MeasureLimits("#ffffff", 64.0)


def draw(folder: Path, count: int, size: int = 64) -> list[Path]:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    paths = [folder / f"{index:04}.png" for index in range(count)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((size, size)).save(path)
    return paths


def test_processes_and_threads_measure_the_same_in_the_same_order(tmp_path: Path):
    paths = draw(tmp_path, 60)
    paths[17].write_text("no image")
    alone = list(measure_all(paths, LIMITS, silent, 1))
    assert list(measure_all(paths, LIMITS, silent, 2)) == alone
    assert list(measure_all(paths, LIMITS, silent)) == alone
    assert len({result.sha256 for result in alone}) == 60
    assert [index for index, result in enumerate(alone) if result.error] == [17]
    assert multiprocessing.active_children() == []


def test_a_small_set_starts_no_process_and_a_large_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[int] = []

    def refuse(_paths: object, _limits: object, workers: int) -> Iterator[object]:
        asked.append(workers)
        return iter(())

    monkeypatch.setattr(pool, "_in_processes", refuse)
    monkeypatch.setattr(pool, "available_cores", lambda: 3)
    few = draw(tmp_path, pool.FEW - 1, size=8)
    assert len(list(measure_all(few, LIMITS, silent))) == len(few)
    assert asked == []
    assert list(measure_all([*few, few[0]], LIMITS, silent)) == []
    assert asked == [3]
    monkeypatch.setattr(pool, "available_cores", lambda: 1)
    assert len(list(measure_all([*few, few[0]], LIMITS, silent))) == pool.FEW


def test_progress_is_told_to_the_end_and_not_for_each_of_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pool, "_EVENTS", 4)
    paths = draw(tmp_path, 22, size=8)
    heard: list[tuple[object, ...]] = []
    for _ in measure_all(paths, LIMITS, lambda event, **fields: heard.append((event, *fields.values()))):
        pass
    assert heard[-1] == ("progress", "images looked at", 22, 22)
    assert len(heard) == 5


def test_files_under_way_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    started: list[int] = []
    submit = pool.ProcessPoolExecutor.submit

    def count(self: pool.ProcessPoolExecutor, work: object, chunk: pool.Chunk, limits: object) -> object:
        started.append(chunk[0])
        return submit(self, work, chunk, limits)

    monkeypatch.setattr(pool.ProcessPoolExecutor, "submit", count)
    paths = draw(tmp_path, 200, size=8)
    results = measure_all(paths, LIMITS, silent, 2)
    for done in range(100):
        next(results)
        assert max(started) <= done + 8 * (2 * 3 + 1)
    results.close()
    assert max(started) < 160
    assert multiprocessing.active_children() == []


def test_a_process_that_dies_is_an_error_that_names_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    paths = draw(tmp_path, 40)
    os.mkfifo(tmp_path / "stuck")
    paths[20] = tmp_path / "stuck"  # whoever reads it waits, until it is killed
    results = measure_all(paths, LIMITS, silent, 2)
    for _ in range(16):
        next(results)  # the third chunk is with the process that waits, the other goes on
    time.sleep(0.5)
    multiprocessing.active_children()[0].kill()
    with pytest.raises(EnvironmentProblem, match="died, most likely for lack of memory, at one of: ") as caught:
        list(results)
    assert str(tmp_path / "stuck") in str(caught.value)
    assert str(caught.value).count(".png") <= 1
    assert multiprocessing.active_children() == []


CHILD = """
import signal, sys
from pathlib import Path
from brushset.audit.measure import MeasureLimits
from brushset.audit.pool import measure_all
from brushset.errors import Interrupted

def stop(number, _):
    raise Interrupted(number)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    paths = sorted(Path(sys.argv[1]).glob("*.png")) * 2000
    try:
        for _ in measure_all(paths, MeasureLimits("#ffffff", 64.0), lambda *a, **f: None, 2):
            if not getattr(sys, "told", False):
                sys.told = True
                print("going", flush=True)
    except Interrupted as error:
        sys.exit(error.exit_code)
"""


def start(tmp_path: Path) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """A process that measures without end, in a group of its own, and its children."""
    draw(tmp_path / "images", 20)
    script = tmp_path / "script.py"
    script.write_text(CHILD)
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    child = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "images")], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=environment, start_new_session=True,
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stdout.readline() == "going\n"
    return child, psutil.Process(child.pid).children(recursive=True)


@pytest.mark.parametrize(
    ("number", "to_all", "code"),
    [(signal.SIGINT, True, 130), (signal.SIGTERM, False, 143), (signal.SIGKILL, False, -9)],
)
def test_however_it_is_stopped_no_process_is_left_and_nothing_is_printed(
    tmp_path: Path, number: signal.Signals, to_all: bool, code: int
):
    child, others = start(tmp_path)
    assert len(others) >= 2
    (os.killpg if to_all else os.kill)(child.pid, number)
    _, errors = child.communicate(timeout=30)
    assert child.returncode == code
    _, left = psutil.wait_procs(others, timeout=15)
    for process in left:
        process.kill()
    assert left == []
    if number == signal.SIGINT:
        assert errors == ""
