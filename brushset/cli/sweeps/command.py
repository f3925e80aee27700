"""`sweep` from the plan to the exit code: the same command finds its runs again, and does only what is missing."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import typer

from brushset.bases.resolve import resolve_base
from brushset.cli.devices import list_gpus, require_gpus, see_only
from brushset.cli.dispatch import machine_slots
from brushset.cli.guard import AlreadyTold, listen, stderr, stdout
from brushset.cli.mps import mps_environment
from brushset.cli.options import Options, load_spec
from brushset.cli.sources import style_names
from brushset.cli.sweeps.ask import SweepAsk
from brushset.cli.sweeps.climb import Climb
from brushset.cli.sweeps.members import Member, at_rung, plan_members, planned_steps
from brushset.cli.sweeps.one_process import OneProcess
from brushset.cli.sweeps.report import read_results, write_report
from brushset.cli.sweeps.shown import Plan, Progress, price, show_plan, show_ranking
from brushset.engines import packs
from brushset.errors import Interrupted, PartlyFailed, UsageError
from brushset.executors import make_executor
from brushset.executors.local import LocalExecutor, divide_evenly
from brushset.executors.standing import is_finished
from brushset.files import sha256_json, shown
from brushset.paths import RunPaths, RunsDir
from brushset.pipeline import Stage, require_stages
from brushset.protocols import Emit, Executor, Standing
from brushset.session import prepare_run
from brushset.spec import ExecutorSection
from brushset.sweeps.drive import carry_out
from brushset.sweeps.halving import ETA, choose_rungs
from brushset.sweeps.ledger import Entry, Sweep, find_sweeps, load_sweep, save_sweep, sweep_name
from brushset.sweeps.sharing import find_shared_legs
from brushset.sweeps.space import varied

_GOES_ON = "{name}: jobs go on; the same command follows them, orchestrate.py cancel stops them"


@dataclass(frozen=True)
class Work:
    """A sweep that is about to start."""

    stages: Sequence[Stage[Any]]
    options: Options
    members: Sequence[Member]
    name: str
    rungs: int
    until: str
    emit: Emit

    @property
    def names(self) -> list[str]:
        """The stages that each run goes through."""
        known = [stage.name for stage in self.stages]
        return known[: known.index(self.until) + 1]

    @property
    def runs_dir(self) -> RunsDir:
        return RunsDir(self.options.runs_dir.absolute())

    @property
    def executor(self) -> ExecutorSection:
        """Where runs are done; the same for all of them."""
        return self.members[0].spec.executor

    @cached_property
    def slots(self) -> Sequence[Mapping[str, str]]:
        """The environments of as many processes at once on this machine."""
        return machine_slots(self.options)

    @cached_property
    def packs(self) -> bool:
        """Whether runs are trained several in one pass: on each GPU, unless `--parallel` says how they share it."""
        here = self.executor.use == "local" and self.options.parallel == 1
        return here and all(packs(each.spec.train.engine) and each.spec.train.pack for each in self.members)

    @property
    def packs_here(self) -> bool:
        """Whether one pass has all of them, in this process."""
        return self.packs and len(self.slots) == 1


def sweep(stages: Sequence[Stage[Any]], options: Options, ask: SweepAsk) -> None:
    """Plans, shows, asks, does, reports.

    Raises:
        UsageError: everything that is wrong with any run of it.
        PartlyFailed: not all runs went well; the others are done.
    """
    work = plan_sweep(stages, options, ask)
    plan = show(work)
    if options.dry_run or not _agreed(ask, plan, as_json=options.json):
        return
    see_only(options.gpus)
    _require_bases(work)
    begun = [at_rung(each, 0, work.rungs) for each in work.members] + _climbed_before(work)
    runs = {prepare_run(each.spec, each.images, each.engine_reason, work.runs_dir): each for each in begun}
    _tell_end(work, _carry_out(work, runs))


def plan_sweep(stages: Sequence[Stage[Any]], options: Options, ask: SweepAsk) -> Work:
    """Everything settled, nothing done."""
    known = [stage.name for stage in stages]
    until = options.until or known[-1]
    require_stages(known, until)
    if options.force:
        raise UsageError("--force: a sweep does what is missing; fix: --force on the style's own command")
    if options.mps and options.parallel == 1:
        raise UsageError("--mps lets several runs share a GPU; fix: --parallel N with it")
    if ask.halving and known.index(until) < known.index("train"):
        raise UsageError(f"--halving ranks runs by their scores, and {until} gives none; fix: a later --until")
    styles = style_names(options)
    seed = load_spec(styles[0], options, images=None).train.seed
    members = plan_members(options, styles, ask.points(seed), touch=not options.dry_run)
    if len({each.spec.executor for each in members}) > 1:
        raise UsageError("these styles name different executors; fix: --executor, or a sweep each")
    rungs = min(choose_rungs(each.spec.train, len(members)) for each in members) if ask.halving else 1
    parts = [[each.spec.model_dump(mode="json", exclude={"executor": True}) for each in members], until, rungs]
    emit, _ = listen(options, len(stages))
    return Work(stages, options, members, sweep_name(ask.name, styles, parts), rungs, until, emit)


def _climbed_before(work: Work) -> list[Member]:
    """Whom an earlier call of a halving let go on: by what was known then, which is not decided again."""
    if work.rungs == 1 or work.name not in {path.name for path in find_sweeps(work.runs_dir)}:
        return []
    known = {(each.spec.name, sha256_json(each.settings)): each for each in work.members}
    entries = [each for each in load_sweep(work.runs_dir, work.name).entries if each.rung]
    return [
        at_rung(known[key], each.rung, work.rungs)
        for each in entries
        if (key := (each.style, sha256_json(each.settings))) in known
    ]


def show(work: Work) -> Plan:
    """Prints the plan and what it takes."""
    counts = [max(1, len(work.members) // ETA**rung) for rung in range(work.rungs)]
    rungs = [[at_rung(each, rung, work.rungs) for each in work.members[:count]] for rung, count in enumerate(counts)]
    known = [stage.name for stage in work.stages]
    plan = Plan(work.name, rungs, evaluates=work.until in known[known.index("train") + 1 :], how=_how(work))
    show_plan(plan, price(plan, work.runs_dir), as_json=work.options.json)
    return plan


def _how(work: Work) -> str:
    if work.packs_here:
        return "trained in one pass, in this process"
    if work.packs:
        return f"divided over {len(work.slots)} GPUs, on each trained in one pass"
    slots = len(work.slots) if work.executor.is_here else 1
    return f"executor {work.executor.use}" + (f", {slots} at once" if slots > 1 else "")


def _agreed(ask: SweepAsk, plan: Plan, *, as_json: bool) -> bool:
    """Whether it shall start; who cannot be asked has said so by the command."""
    if ask.yes or as_json or not (sys.stdin.isatty() and stderr.is_terminal):
        return True
    return typer.confirm(f"start {sum(map(len, plan.rungs))} runs?", default=True, err=True)


def _require_bases(work: Work) -> None:
    """Every base that will be trained on, fetched and checked, before the first run begins."""
    if work.names[-1] in {"audit", "preprocess", "caption", "configure"}:
        return
    seen = list_gpus() if work.executor.use == "local" else []
    for member in {(each.spec.base, each.spec.train.processes): each for each in work.members}.values():
        if work.executor.use == "local":
            require_gpus(member.spec.train.processes, os.environ, seen)
        resolve_base(member.spec.base.model, member.spec.base.revision, work.emit)


def _carry_out(work: Work, runs: dict[RunPaths, Member]) -> Mapping[RunPaths, Standing]:
    """Does all of it; `runs` grows with each rung."""
    _save(work, runs)
    progress = Progress({run: member.label for run, member in runs.items()}, work.options.json, len(runs))
    with contextlib.ExitStack() as stack:
        if work.options.mps:
            os.environ.update(stack.enter_context(mps_environment(work.emit)))
        executor = stack.enter_context(contextlib.closing(_executor(work, runs)))

        def begin(member: Member) -> RunPaths:
            run = prepare_run(member.spec, member.images, member.engine_reason, work.runs_dir)
            runs[run], progress.labels[run] = member, f"rung {member.rung + 1}: {member.label}"
            _save(work, runs)
            return run

        climb = Climb(work.members, runs, work.rungs, begin, work.emit)
        try:
            if not work.packs_here:
                _do_shared(work, executor, runs, progress)
            return carry_out(executor, list(runs), work.names, progress, climb.follow, python=work.executor.python)
        except Interrupted:
            if executor.outlives:
                work.emit("note", text=_GOES_ON.format(name=executor.name))
            raise


def _executor(work: Work, runs: Mapping[RunPaths, Member]) -> Executor:
    if work.packs_here:
        return OneProcess(runs, work.stages, work.options, work.until)
    if work.packs:
        even = partial(
            divide_evenly, count=len(work.slots), weigh=lambda handle: planned_steps(runs[handle.task.run])[0]
        )
        return LocalExecutor(work.slots, work.executor.max_retries, even)
    return make_executor(work.executor, work.slots)


def _do_shared(work: Work, executor: Executor, runs: Mapping[RunPaths, Member], progress: Progress) -> None:
    """What does not depend on what varies, once. Who fails there fails again with its own run, where it is told."""
    folders, members = list(runs), list(runs.values())
    for leg in find_shared_legs([each.spec for each in members], [each.images for each in members], work.stages):
        until = work.names[: work.names.index(leg.until) + 1] if leg.until in work.names else []
        leaders = [folders[place] for place in leg.places if until and not is_finished(folders[place], until)]
        if leaders:
            labels = ", ".join(progress.labels[run] for run in leaders)
            work.emit("note", text=f"first, for all: up to {leg.until}, by {labels}")
            carry_out(executor, leaders, until, lambda _: None, python=work.executor.python)


def _save(work: Work, runs: Mapping[RunPaths, Member]) -> None:
    entries = tuple(
        Entry(run=f"{run.style}/{run.run_id}", style=run.style, settings=dict(member.settings), rung=member.rung)
        for run, member in runs.items()
    )
    points = [member.settings for member in runs.values()]
    sweep = Sweep(
        name=work.name, argv=tuple(sys.argv), created_at=time.time(), varied=tuple(varied(points)), rungs=work.rungs,
        until=work.until, entries=entries,
    )  # fmt: skip
    save_sweep(work.runs_dir, sweep)


def _tell_end(work: Work, ended: Mapping[RunPaths, Standing]) -> None:
    """The ranking, the report, and what failed."""
    results = read_results(work.runs_dir, work.name)
    show_ranking(results.ranked, as_json=work.options.json)
    page = write_report(work.runs_dir, results)
    failed = {run: each for run, each in ended.items() if each.state != "finished"}
    again = "; the same command tries the rest again" if failed else ""
    told = f"{len(ended) - len(failed)} of {len(ended)} runs are done{again}; report: {shown(page)}"
    work.emit("sweep_end", name=work.name, done=len(ended) - len(failed), failed=len(failed), report=str(page))
    if not work.options.json:
        stdout.print(told, markup=False)
    if failed:
        lines = [f"{shown(run.root)}: {each.state}: {each.words}" for run, each in failed.items()]
        raise AlreadyTold(PartlyFailed.of_many(lines))
