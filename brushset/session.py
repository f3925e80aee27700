"""One style's run from lock to last record: finds or makes the run folder, executes the stages, keeps run.json true.

It knows no stage; the front door hands them in.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import filelock

from brushset.claims import Claim, claim_run
from brushset.errors import BrushsetError, EnvironmentProblem, Interrupted, StyleLocked
from brushset.log import EventLog
from brushset.manifest import Status, create_run, find_run, refresh_manifest, run_identity, update_manifest
from brushset.paths import RunPaths, RunsDir
from brushset.pipeline import Pipeline, Stage, require_stages
from brushset.process import process_file, stop_orphan
from brushset.spec import StyleSpec
from brushset.stage_records import load_record


@dataclass(frozen=True)
class Ask:
    """What is to be done for one style. `stand_on` is a finished run whose results before `start` are taken as they are;
    `run` is the very folder to work in, where that is not to be found by what the spec says; `submission` is of an
    executor; `label` is what it is told by beside others of its style.
    """

    spec: StyleSpec
    images: Mapping[str, str]
    engine_reason: str
    until: str | None = None
    force: str | None = None
    start: str | None = None
    stand_on: RunPaths | None = None
    run: RunPaths | None = None
    submission: str = ""
    label: str = ""

    @property
    def key(self) -> str:
        """What tells it from those beside it."""
        return self.label or self.spec.name


@dataclass(frozen=True)
class Outcome:
    """What was done: the run, and how many stages did work."""

    run: RunPaths
    worked: int


def run_style(ask: Ask, stages: Sequence[Stage[Any]], runs: RunsDir, events: EventLog) -> Outcome:
    """Brings one style's run up to date.

    Raises:
        StyleLocked: another process works on this style.
        RunTaken: another process works on this run.
        BrushsetError: whatever a stage raises; run.json then says failed or interrupted.
    """
    with open_session(ask, stages, runs, events) as session:
        try:
            session.begin()
            session.execute(session.todo, force=ask.force)
            return session.end()
        except Interrupted as error:
            session.interrupt(error)
            raise
        except Exception as error:
            told = session.fail(error)
            if told is error:
                raise
            raise told from error


@dataclass
class Session:
    """One style's work on a run folder that is its alone, and what run.json says of how it went."""

    ask: Ask
    run: RunPaths
    stages: Sequence[Stage[Any]]
    pipeline: Pipeline
    events: EventLog
    claim: Claim
    worked: int = 0

    @property
    def todo(self) -> Sequence[Stage[Any]]:
        """The stages that are asked for."""
        names = [stage.name for stage in self.stages]
        first = names.index(self.ask.start) if self.ask.start else 0
        last = names.index(self.ask.until) + 1 if self.ask.until else None
        return self.stages[first:last]

    def begin(self) -> None:
        """Says that it is at work, and takes what the stages stand on."""
        ask = self.ask
        self.events("run_start", folder=str(self.run.root), engine=ask.spec.train.engine, reason=ask.engine_reason)
        self.record_state()
        if ask.start and ask.stand_on:
            self.pipeline.stand_on(self.stages, before=ask.start, source=ask.stand_on)

    def execute(self, stages: Sequence[Stage[Any]], *, force: str | None) -> None:
        """Runs some of the stages; `force` may be one that is not among them."""
        forced = force if any(stage.name == force for stage in stages) else None
        self.worked += self.pipeline.execute(stages, force=forced)

    def end(self) -> Outcome:
        """Says that all that was asked for stands."""
        _drop_attempts(self.run)
        finished = all(load_record(self.run, stage.name) for stage in self.stages)
        self.record_state("done" if finished else "partial")
        self.events("run_end", folder=str(self.run.root), worked=self.worked)
        return Outcome(self.run, self.worked)

    def interrupt(self, error: Interrupted) -> None:
        """Says that it was stopped from outside."""
        self.claim.ended_with = error
        self.record_state("interrupted", str(error))

    def fail(self, error: Exception) -> BrushsetError:
        """Says that it failed; returns the error as one of ours."""
        told = self.claim.ended_with = _in_our_terms(error, self.run, self.events)
        self.record_state("failed", str(told))
        return told

    def record_state(self, status: Status = "running", error: str = "") -> None:
        """Brings run.json up to date with the stages' records, unless the run has become another process's."""
        if not self.claim.holds():
            return
        records = [record for stage in self.stages if (record := load_record(self.run, stage.name))]
        update_manifest(self.run, records, status=status, error=error)


@contextmanager
def open_session(ask: Ask, stages: Sequence[Stage[Any]], runs: RunsDir, events: EventLog) -> Iterator[Session]:
    """Locks the style, finds or makes its run folder, claims it, and sends its events there. Runs that are named by their
    folder are of the same style at the same time.

    Raises:
        StyleLocked: another process works on this style.
        RunTaken: another process works on this run.
        UsageError: a stage that there is not, or that lies before the first.
    """
    known = [stage.name for stage in stages]
    known = known[known.index(ask.start) :] if ask.start else known
    require_stages(known, ask.until, ask.force)
    with ExitStack() as stack:
        run = ask.run
        if run is None:
            stack.enter_context(style_lock(runs, ask.spec.name))
            run = prepare_run(ask.spec, ask.images, ask.engine_reason, runs)
            runs.point_latest(run)
        claim = stack.enter_context(claim_run(run, events, submission=ask.submission))
        if ask.run is not None:
            refresh_manifest(run)
        _sweep(run)
        events.write_to(run.events, style=ask.spec.name, run=run.run_id)
        stack.callback(events.stop_writing)
        donors = [other for other in reversed(runs.runs_of(ask.spec.name)) if other.root != run.root]
        pipeline = Pipeline(ask.spec, run, claim.watching(events), donors, may_publish=claim.check)
        session = Session(ask, run, stages, pipeline, events, claim)
        pipeline.on_change = session.record_state
        yield session


def prepare_run(spec: StyleSpec, images: Mapping[str, str], engine_reason: str, runs: RunsDir) -> RunPaths:
    """The run folder of a spec and its images, made where there is none yet; nothing is run. Any process that sees it
    under the same path can do it then: the spec names its folder of images in full.
    """
    found = find_run(runs, spec.name, run_identity(spec, images))
    return found or create_run(runs, spec, images, engine_reason)


def _in_our_terms(error: Exception, run: RunPaths, events: EventLog) -> BrushsetError:
    """An error as one of ours: a disk or permission problem, or a bug, with its trace kept in the run."""
    if isinstance(error, BrushsetError):
        return error
    trace = events.trace(error)
    if isinstance(error, OSError):
        return EnvironmentProblem(f"{error.filename or run.root}: {error.strerror or error}; the trace is in {trace}")
    return BrushsetError(f"{type(error).__name__}: {error}; this is a bug of ours, its trace is in {trace}")


@contextmanager
def style_lock(runs: RunsDir, style: str) -> Iterator[None]:
    """Holds the style's lock; the system frees it when the process dies, however it dies."""
    path = runs.lock(style)
    path.parent.mkdir(parents=True, exist_ok=True)
    holder = path.with_name(".lock-holder")
    try:
        with filelock.FileLock(path, timeout=0):
            holder.write_text(str(os.getpid()), encoding="utf-8")
            yield
    except filelock.Timeout as error:
        who = holder.read_text(encoding="utf-8") if holder.is_file() else "unknown"
        message = f'style "{style}" is being worked on by process {who}; fix: wait for it, or use another --runs-dir'
        raise StyleLocked(message) from error


def _sweep(run: RunPaths) -> None:
    """Removes what a killed process left half-done: temporary folders, never a published one."""
    stop_orphan(process_file(run.train_log))
    for leftover in [*run.root.glob(".tmp-*"), *run.root.glob(".old-*")]:
        shutil.rmtree(leftover, ignore_errors=True)
    _drop_attempts(run)


def _drop_attempts(run: RunPaths) -> None:
    """Removes what was kept to go on from once its training is on record; another training's is left alone."""
    record = load_record(run, "train")
    if record is not None and any(record.digest.startswith(path.name) for path in run.attempts.glob("*")):
        shutil.rmtree(run.attempts, ignore_errors=True)
