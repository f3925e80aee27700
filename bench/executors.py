"""What each executor costs on this machine: seconds until it is ready, seconds from submit to the first line of work, and the
memory that its daemons hold.

    python bench/executors.py                         # local, Ray where it is installed, Slurm where there is one
    python bench/executors.py --executors ray --repeats 5 --out FILE.jsonl

A Slurm of two nodes on one host, where there is none: `sudo python tests/slurm_one_host.py FOLDER` (it says how). The work is
a bare Python process that writes the time down and sleeps: so nothing of a run's own start is in these figures. Memory is
that of the engine's daemons on this machine: RSS at its peak, which counts shared pages in each process, and USS, which
counts none; beside them the RSS of the process that starts a run and waits for it, one a run. A line of JSON a start; the
load says what else was going on.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import psutil

from bench.lines import tell
from brushset.errors import BrushsetError
from brushset.executors import EXECUTORS, make_executor
from brushset.paths import PROJECT, RunPaths, RunsDir
from brushset.protocols import Executor, Task
from brushset.spec import ExecutorSection

WORK = (
    "import os, sys, time; open(sys.argv[1], 'w').write(f'{time.time()} {os.getpid()}'); time.sleep(float(sys.argv[2]))"
)
WORK_S = 3.0
DAEMONS: Mapping[str, tuple[str, ...]] = {
    "local": (),
    "ray": ("raylet", "gcs_server", "ray::", "python"),  # of those that descend from us: it starts Python processes too
    "slurm": ("slurmctld", "slurmd", "slurmstepd", "munged"),
}
_PATIENCE_S = 180.0
_POLL_S = 0.05
_MIB = 1 << 20


def main() -> None:
    """Measures those asked for, one after the other."""
    asked = _parse()
    os.environ["PYTHONPATH"] = str(PROJECT)  # Ray's workers import what they are to do
    for name in asked.executors:
        for repeat in range(asked.repeats):
            with tempfile.TemporaryDirectory(prefix="bench-executors-") as folder:
                found = measure(name, RunsDir(Path(folder) / "runs"))
            tell({"executor": name, "repeat": repeat, **found, "load": round(os.getloadavg()[0], 1)}, asked.out)
            if "skipped" in found:
                break


def measure(name: str, runs: RunsDir, work_s: float = WORK_S) -> dict[str, object]:
    """One start of an executor with one piece of work; why not, where it cannot be had."""
    settings = ExecutorSection.model_validate(
        {"use": name, "max_retries": 0, "slurm": {"gres": None, "time": "5", "cpus_per_task": 1}}
    )
    run = runs.run("bench", "one")
    run.root.mkdir(parents=True)
    began = time.monotonic()
    try:
        with contextlib.closing(make_executor(settings, [dict(os.environ)])) as executor:
            ready_s = time.monotonic() - began
            return {"ready_s": round(ready_s, 2), **_work(executor, run, work_s)}
    except BrushsetError as error:
        return {"skipped": str(error).splitlines()[0]}


def daemons(name: str, without: Iterable[int] = ()) -> list[psutil.Process]:
    """The processes here that are the engine's; `without` are not, and what descends from them is not."""
    known, apart = DAEMONS[name], set(without)
    mine = psutil.Process().children(recursive=True) if name != "slurm" else psutil.process_iter()
    found = []
    for process in mine:
        with contextlib.suppress(psutil.Error):
            ours = {process.pid, *(parent.pid for parent in process.parents())} & apart
            if not ours and process.name().startswith(known):
                found.append(process)
    return found if known else []


def _work(executor: Executor, run: RunPaths, work_s: float) -> dict[str, object]:
    """Submits the work, waits for its first line, and watches the daemons until it ends."""
    started = run.root / "started"
    asked_at = time.time()
    executor.submit([Task(run, (sys.executable, "-c", WORK, str(started), str(work_s)), ("train",))])
    deadline = time.monotonic() + _PATIENCE_S
    rss: dict[str, int] = {}
    while not started.is_file() or not (words := started.read_text().split()):
        if time.monotonic() > deadline:
            return {"skipped": f"no work was begun within {_PATIENCE_S:.0f} s"}
        time.sleep(_POLL_S)
    starter = psutil.Process(int(words[1])).parent() or psutil.Process()
    apart = [] if starter.pid == os.getpid() else [starter.pid]
    end = time.monotonic() + work_s / 2
    while time.monotonic() < end:
        rss = _larger(rss, _rss(daemons(executor.name, apart)))
        time.sleep(_POLL_S)
    uss = sum(_uss(process) for process in daemons(executor.name, apart))
    return {
        "first_line_s": round(float(words[0]) - asked_at, 2), "rss_mib": round(sum(rss.values()) / _MIB),
        "uss_mib": round(uss / _MIB), "starter_mib": round(starter.memory_info().rss / _MIB) if apart else 0,
        "daemons": {name: round(size / _MIB) for name, size in sorted(rss.items())},
    }  # fmt: skip


def _rss(processes: Sequence[psutil.Process]) -> dict[str, int]:
    """By name; of several of one name together."""
    found: dict[str, int] = {}
    for process in processes:
        with contextlib.suppress(psutil.Error):
            name = process.name()
            found[name] = found.get(name, 0) + process.memory_info().rss
    return found


def _larger(before: Mapping[str, int], now: Mapping[str, int]) -> dict[str, int]:
    return {name: max(before.get(name, 0), now.get(name, 0)) for name in before.keys() | now.keys()}


def _uss(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.Error):
        return int(process.memory_full_info().uss)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--executors", nargs="+", choices=list(EXECUTORS), default=list(EXECUTORS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="file of JSON Lines to add to")
    return parser.parse_args()


if __name__ == "__main__":
    main()
