"""How a run stands, by its folder: what run.json says, held against who is known to work on it, and how long ago it spoke.

run.json says "running" until somebody says otherwise, and whoever was killed cannot. So a run is running only while its
process lives, or, on another machine, which cannot be asked, while its events are fresh.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from brushset.files import one_line
from brushset.manifest import RunManifest, read_manifest
from brushset.paths import RunPaths
from brushset.spec import ExecutorSection
from brushset.workers import WorkerEvent, Workers, is_abandoned, is_alive, read_workers

State = Literal["waiting", "running", "silent", "dead", "partial", "done", "failed", "interrupted", "cancelled"]
SILENT_S = 600.0  # between two events of a training lie seconds, of a slow captioner minutes
_TAIL_BYTES = 1 << 16
_MAX_RETRIES = ExecutorSection().max_retries  # which one the executor was given is not on record


@dataclass(frozen=True)
class RunState:
    """One run. `step` is its newest training step as it was told; `where` is host:pid of who works on it; `attempts` the
    processes that were started on it, but for those that did well what they were asked; `words` why it does not go on.
    """

    run: RunPaths
    manifest: RunManifest
    state: State
    stage: str = ""
    step: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""
    executor: str = ""
    job: str = ""
    attempts: int = 0
    quiet_s: float | None = None
    words: str = ""

    @property
    def is_open(self) -> bool:
        """Whether somebody works on it, or is to."""
        return self.state in {"waiting", "running", "silent"}


def read_state(run: RunPaths, now: float | None = None) -> RunState | None:
    """A run's state; None where its run.json cannot be read."""
    manifest = read_manifest(run)
    if manifest is None:
        return None
    workers, now = read_workers(run), time.time() if now is None else now
    events = list(_last_events(run))
    quiet = now - run.events.stat().st_mtime if run.events.is_file() else None
    state, words = _judge(manifest, workers, quiet)
    submission, worker = workers.submission, workers.worker
    return RunState(
        run=run,
        manifest=manifest,
        state=state,
        stage=_stage(events) if state in {"running", "silent", "dead"} else "",
        step=next((each for each in events if each["event"] == "train_step"), {}),
        where=f"{worker.host}:{worker.pid}" if worker else "",
        executor=submission.executor if submission else "",
        job=(worker.job if worker else "") or (submission.job if submission else ""),
        attempts=workers.attempts,
        quiet_s=quiet,
        words=one_line(words),
    )


def _judge(manifest: RunManifest, workers: Workers, quiet: float | None) -> tuple[State, str]:
    """What can be known, and the words for what is wrong."""
    worker = workers.worker
    told = manifest.error.splitlines()[0] if manifest.error else ""
    if worker is not None:
        return _judge_worker(worker, workers, quiet)
    if workers.cancelled:
        return "cancelled", "cancelled; fix: orchestrate.py resume"
    if _is_queued(workers):
        return "waiting", ""
    if manifest.status == "running":
        return "dead", "says that it runs, and nobody is on record who works on it; fix: orchestrate.py resume"
    if manifest.status == "waiting":
        asked = workers.submission
        who = f"executor {asked.executor} (process {asked.pid}) is gone" if asked else "nobody was asked to do it"
        return "waiting", f"{who}; fix: orchestrate.py resume, or the command that made it"
    return manifest.status, told


def _judge_worker(worker: WorkerEvent, workers: Workers, quiet: float | None) -> tuple[State, str]:
    """Of a run on which a process works, or died."""
    alive = is_alive(worker)
    if alive is False and (executor := _who_follows(worker, workers)):
        return "waiting", f"process {worker.pid} died; executor {executor} begins it anew"
    if alive is False:
        return "dead", f"process {worker.pid} is gone, without a word; fix: orchestrate.py resume"
    if quiet is not None and quiet > SILENT_S:
        where = "" if alive else f" on {worker.host}, which cannot be asked from here"
        return "silent", f"silent for {_minutes(quiet)}{where}"
    return "running", ""


def _who_follows(dead: WorkerEvent, workers: Workers) -> str:
    """The executor that will have another one go on where this one died; "" where there is none."""
    asked = workers.submission
    if asked is None or is_abandoned(asked) or dead.submission != asked.submission:
        return ""
    return asked.executor if workers.may_go_on(_MAX_RETRIES) else ""


def _is_queued(workers: Workers) -> bool:
    """Whether an executor that lives, or a cluster, was asked to work on it, and has not begun, or is to begin anew."""
    asked = workers.submission
    if asked is None or is_abandoned(asked):
        return False
    return not workers.starts or (workers.exit_code not in {0, None} and workers.may_go_on(_MAX_RETRIES))


def _stage(newest_first: Sequence[Mapping[str, Any]]) -> str:
    """The stage that has begun and not ended."""
    for each in newest_first:
        if each["event"] in {"stage_end", "stage_skip", "run_start"}:
            return ""
        if each["event"] == "stage_start":
            return str(each.get("stage", ""))
    return ""


def _last_events(run: RunPaths) -> Iterator[dict[str, Any]]:
    """The events at the file's end, newest first."""
    if not run.events.is_file():
        return
    with run.events.open("rb") as file:
        file.seek(max(0, run.events.stat().st_size - _TAIL_BYTES))
        lines = file.read().decode("utf-8", "replace").splitlines()
    for line in reversed(lines):
        try:
            told = json.loads(line)
        except ValueError:
            continue  # cut at the front, or being written
        if isinstance(told, dict) and "event" in told:
            yield told


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
