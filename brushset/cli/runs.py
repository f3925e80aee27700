"""Commands that run stages: the whole pipeline, or as much of it as is asked for, for one or several styles.

Several styles go in two legs, all of them up to `convert` first, so that each one's evaluation sees the others'
adapters. In that first leg those of the native engine are trained in one pass; with `--parallel` several styles go it at
once, a process each, and nothing is packed. Where [executor] names Ray or Slurm these do all of it. One style that
fails does not touch the others; the exit code is that of the first failure.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from brushset.bases.resolve import resolve_base
from brushset.cli.console import ConsoleListener
from brushset.cli.devices import list_gpus, memory_warnings, parse_gpus, require_gpus, see_only
from brushset.cli.dispatch import run_elsewhere
from brushset.cli.guard import AlreadyTold, listen, stdout, tell
from brushset.cli.one_pass import choose_packed, run_in_one_pass
from brushset.cli.options import Options, load_spec
from brushset.cli.phases import PhaseTimes
from brushset.cli.plan import show_plan
from brushset.cli.project import update_project
from brushset.cli.several import ParallelLeg, refuse_spread, run_parallel
from brushset.cli.sources import find_images, style_names
from brushset.engines import choose_engine
from brushset.errors import BrushsetError, UsageError
from brushset.images import source_digest
from brushset.log import EventLog
from brushset.paths import PROJECT, RunsDir
from brushset.pipeline import Stage, require_stages
from brushset.prepare.upscale import check_upscaler
from brushset.protocols import Emit
from brushset.records import BaseFile
from brushset.session import Ask, Outcome, run_style
from brushset.spec import StyleSpec
from webui_export.stage import check_targets

FIRST_LEG_ENDS_AT = "convert"


@dataclass(frozen=True)
class Hearers:
    """Who hears of a command: its event log, what a person sees of that, if any, and the clock."""

    events: EventLog
    listener: ConsoleListener | None
    times: PhaseTimes


@dataclass(frozen=True)
class Leg:
    """A stretch of the pipeline that all styles go before any goes on."""

    until: str | None
    force: str | None


def run_styles(stages: Sequence[Stage[Any]], options: Options, *, until: str | None = None) -> None:
    """Runs the pipeline for every style that is meant, up to and including `until`.

    Raises:
        BrushsetError: the first failure, once the other styles are done.
    """
    until = until or options.until
    known = [stage.name for stage in stages]
    require_stages(known, until, options.force)
    names = style_names(options)
    if options.mps and options.parallel == 1:
        raise UsageError("--mps lets several styles share a GPU; fix: --parallel N with it")
    legs = _legs(names, known, until=until, force=options.force)
    if options.dry_run:
        _show_plans(names, options, known, until=until, packs=_may_pack(options, legs[0], known))
        return
    see_only(options.gpus)
    times = PhaseTimes()
    events, listener = listen(options, len(stages), times)
    if options.parallel > 1 and len(names) == 1:
        events("note", text=f"--parallel {options.parallel}: {names[0]} is the only style, so nothing goes beside it")
    failures: dict[str, BrushsetError] = {}
    for leg in legs:
        going_on = [name for name in names if name not in failures]
        if elsewhere := _elsewhere(going_on, options):
            asks, some = _asks(elsewhere, options, leg, known, Hearers(events, listener, times))
            failures |= some | run_elsewhere(asks, known, options, events)
            going_on = [name for name in going_on if name not in elsewhere]
        if options.parallel > 1 and len(going_on) > 1 and _is_early(leg.until, known):
            failures |= _run_at_once(going_on, options, leg, known, Hearers(events, listener, times))
            continue
        packed = _packed(going_on, options, touch=True) if _may_pack(options, leg, known) else []
        failures |= _run_packed(packed, options, leg, stages, Hearers(events, listener, times))
        for name in going_on:
            if name not in packed:
                work = partial(_run_one, name, options, stages, events, leg)
                failures |= failure_of(name, work, options, listener)
    if until in {None, "report"}:
        together = partial(update_project, names, RunsDir(options.runs_dir.absolute()), events)
        failures |= failure_of("all styles", together, options, listener)
    if told := times.line():
        events("times", **times.seconds(), text=told)
    raise_first({name: failures[name] for name in (*names, *failures) if name in failures})


def _run_at_once(
    names: Sequence[str],
    options: Options,
    leg: Leg,
    known: Sequence[str],
    hearers: Hearers,
) -> dict[str, BrushsetError]:
    """A leg of several styles side by side. What all of them share is made before: demo images, sd-scripts, bases."""
    events, listener = hearers.events, hearers.listener
    specs: dict[str, StyleSpec] = {}
    full_size: list[StyleSpec] = []
    failures: dict[str, BrushsetError] = {}

    def prepare(name: str) -> None:
        spec, _ = resolve_style(name, options, touch=True)
        refuse_spread(spec)
        base = _require_base(spec, leg, known, events)
        full_size.extend([spec] if base and not base.narrow else [])
        specs[name] = spec

    for name in names:
        failures |= failure_of(name, partial(prepare, name), options, listener)
    for line in memory_warnings(full_size, options.parallel, gpus=parse_gpus(options.gpus), seen=list_gpus()):
        events("warning", text=line)
    if specs and leg.until is not None:
        stretch = ParallelLeg(tuple(specs), leg.until, leg.force, stages=known.index(leg.until) + 1)
        failures |= run_parallel(stretch, options, events, hearers.times)
    return failures


def _elsewhere(names: Sequence[str], options: Options) -> list[str]:
    """The styles that this process does not do itself. One whose settings are wrong is told in its turn."""
    found = []
    for name in names:
        with contextlib.suppress(BrushsetError):
            if load_spec(name, options, images=None).executor.use != "local":
                found.append(name)
    return found


def _may_pack(options: Options, leg: Leg, known: Sequence[str]) -> bool:
    """Whether a leg trains, and `--parallel` does not say how."""
    return options.parallel == 1 and _is_early(leg.until, known) and _trains(leg, known)


def _packed(names: Sequence[str], options: Options, *, touch: bool) -> list[str]:
    """The styles that are trained in one pass. One whose settings are wrong is not among them, and is told in its turn."""
    specs = {}
    for name in names if len(names) > 1 else ():
        with contextlib.suppress(BrushsetError):
            specs[name], _ = resolve_style(name, options, touch=touch)
    return choose_packed(specs)


def _run_packed(
    names: Sequence[str],
    options: Options,
    leg: Leg,
    stages: Sequence[Stage[Any]],
    hearers: Hearers,
) -> dict[str, BrushsetError]:
    """A leg of several styles that are trained in one pass."""
    known = [stage.name for stage in stages]
    asks, failures = _asks(names, options, leg, known, hearers)
    if asks:
        hearers.events("note", text=f"trained in one pass: {', '.join(ask.spec.name for ask in asks)}")
        failures |= run_in_one_pass(asks, stages, options, hearers.times)
    return failures


def _asks(
    names: Sequence[str],
    options: Options,
    leg: Leg,
    known: Sequence[str],
    hearers: Hearers,
) -> tuple[list[Ask], dict[str, BrushsetError]]:
    """What is to be done for each style, and the failures of those of which that cannot be said."""
    asks: list[Ask] = []
    failures: dict[str, BrushsetError] = {}

    def prepare(name: str) -> None:
        asks.append(_ask(name, options, known, hearers.events, leg))

    for name in names:
        failures |= failure_of(name, partial(prepare, name), options, hearers.listener)
    return asks, failures


def _show_plans(
    names: Sequence[str], options: Options, known: Sequence[str], *, until: str | None, packs: bool
) -> None:
    for name in names:
        spec, reason = resolve_style(name, options, touch=False)
        show_plan(spec, reason, stages=known, until=until)
    if packed := _packed(names, options, touch=False) if packs else []:
        stdout.print(f"\n{', '.join(packed)}: trained in one pass; --set train.pack=false trains one after the other")


def failure_of(
    name: str, work: Callable[[], object], options: Options, listener: ConsoleListener | None
) -> dict[str, BrushsetError]:
    """Does the work; tells and returns its failure, under the style's name, where it has one."""
    try:
        work()
    except BrushsetError as error:
        if listener is not None:
            listener.close()
        tell(error, as_json=options.json)
        return {name: error}
    finally:
        if listener is not None:
            listener.close()
    return {}


def raise_first(failures: Mapping[str, BrushsetError]) -> None:
    """Raises the first failure, if any, as one that has been told."""
    for error in failures.values():
        raise AlreadyTold(error)


def _run_one(name: str, options: Options, stages: Sequence[Stage[Any]], events: EventLog, leg: Leg) -> Outcome:
    ask = _ask(name, options, [stage.name for stage in stages], events, leg)
    return run_style(ask, stages, RunsDir(options.runs_dir.absolute()), events)


def _ask(name: str, options: Options, known: Sequence[str], events: EventLog, leg: Leg) -> Ask:
    spec, reason = resolve_style(name, options, touch=True)
    images = source_digest(spec.images_dir(PROJECT))
    _require_base(spec, leg, known, events)
    return Ask(spec, images, reason, until=leg.until, force=leg.force)


def _require_base(spec: StyleSpec, leg: Leg, known: Sequence[str], emit: Emit) -> BaseFile | None:
    """The base, where it will be trained. One of another family, one that cannot be had, and missing GPUs are to be told
    before hours of captioning.
    """
    if _trains(leg, known):
        require_gpus(spec.train.processes, os.environ, list_gpus())
        return resolve_base(spec.base.model, spec.base.revision, emit)
    return None


def _trains(leg: Leg, known: Sequence[str]) -> bool:
    return leg.until is None or known.index(leg.until) >= known.index("train")


def resolve_style(name: str, options: Options, *, touch: bool) -> tuple[StyleSpec, str]:
    """The spec with its folder of images and its engine settled, and why that engine."""
    spec = load_spec(name, options, images=find_images(name, options, touch=touch))
    check_targets(spec.export.targets)
    check_upscaler(spec.dataset, PROJECT)
    engine, reason = choose_engine(spec.train.engine, may_fetch=touch, processes=spec.train.processes)
    changes: dict[str, Any] = {"train": spec.train.model_copy(update={"engine": engine})}
    if engine == "kohya" and spec.base.model == "random:tiny":
        changes["base"] = spec.base.model_copy(update={"model": "random:sd15"})
        reason += "; base random:sd15, since sd-scripts accepts only full-size SD 1.5"
    return spec.model_copy(update=changes), reason


def _legs(names: Sequence[str], stages: Sequence[str], *, until: str | None, force: str | None) -> list[Leg]:
    """One leg, or two where several styles go on to evaluation; a forced stage is redone in the leg that holds it."""
    if len(names) == 1 or _is_early(until, stages):
        return [Leg(until, force)]
    early = _is_early(force, stages)
    return [Leg(FIRST_LEG_ENDS_AT, force if early else None), Leg(until, None if early else force)]


def _is_early(stage: str | None, stages: Sequence[str]) -> bool:
    """Whether it belongs to the first leg, in which no style looks at another's adapter."""
    return stage is not None and stages.index(stage) <= stages.index(FIRST_LEG_ENDS_AT)
