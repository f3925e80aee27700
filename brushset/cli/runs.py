"""Commands that run stages: the whole pipeline for one or several styles, or one stage on a trained run.

Several styles go in two legs, all of them up to `convert` first, so that each one's evaluation sees the others'
adapters. One style that fails does not touch the others; the exit code is that of the first failure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from brushset.bases.resolve import resolve_base
from brushset.cli.console import ConsoleListener
from brushset.cli.guard import AlreadyTold, listen, print_event, stderr, stdout, tell
from brushset.cli.options import Options, load_spec
from brushset.cli.plan import show_plan
from brushset.cli.sources import find_images, images_by_style, style_names
from brushset.engines import choose_engine
from brushset.errors import BrushsetError, InputError, UsageError
from brushset.images import source_digest
from brushset.load import load_style
from brushset.log import EventLog
from brushset.manifest import read_manifest
from brushset.paths import PROJECT, RunsDir
from brushset.pipeline import Stage
from brushset.protocols import Emit
from brushset.records import Audit, AuditedImage
from brushset.session import Ask, Outcome, run_style
from brushset.spec import DatasetSection, StyleSpec
from webui_export.stage import check_targets

FIRST_LEG_ENDS_AT = "convert"
OWN_SECTIONS = {"convert": (), "evaluate": ("evaluate",), "export": ("export",), "report": ()}
AuditFolder = Callable[[Path, DatasetSection, Emit], tuple[Audit, list[AuditedImage]]]


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
    for stage in (until, options.force):
        if stage is not None and stage not in known:
            raise UsageError(f'"{stage}" is no stage; stages: {", ".join(known)}')
    names = style_names(options)
    if options.dry_run:
        for name in names:
            spec, reason = _resolved(name, options, touch=False)
            show_plan(spec, reason, stages=known, until=until)
        return
    events, listener = listen(options, len(stages))
    failures: dict[str, BrushsetError] = {}
    for leg in _legs(names, known, until=until, force=options.force):
        for name in names:
            if name not in failures:
                work = partial(_run_one, name, options, stages, events, leg)
                failures |= _failure_of(name, work, options, listener)
    _raise_first(failures)


def work_on_run(stages: Sequence[Stage[Any]], options: Options, stage: Stage[Any]) -> None:
    """Does one stage on the newest run of each style that is meant; earlier stages are taken as they stand."""
    runs = RunsDir(options.runs_dir.absolute())
    asked = bool(options.style)
    names = style_names(options) if asked else runs.styles()
    if not names:
        raise UsageError(f"{options.runs_dir}: no run yet; fix: orchestrate.py --style NAME")
    events, listener = listen(options, len(stages))
    failures: dict[str, BrushsetError] = {}
    for name in names:
        failures |= _failure_of(name, partial(_redo, name, options, stages, stage, events), options, listener)
    _raise_first(failures)


def audit_folders(options: Options, audit_folder: AuditFolder) -> None:
    """Audits the folders of the styles that are meant, and prints a table. Reads only."""
    events, listener = listen(options, 1)
    folders = images_by_style(options)
    names = style_names(options) if options.style or any(folders) or not folders else [""]
    unusable: list[str] = []
    for name in names:
        section = load_spec(name, options, images=None).dataset if name else DatasetSection()
        folder = find_images(name, options, touch=True) if name else folders[""]
        audit, images = audit_folder(folder, section, events)
        if listener is not None:
            listener.close()
        _show_audit(name or folder.name, audit, images, options)
        if audit.verdict == "unusable":
            unusable += [f"{folder}: {reason}" for reason in audit.reasons]
    if unusable:
        raise InputError.of_many(unusable)


def _failure_of(
    name: str, work: Callable[[], Outcome], options: Options, listener: ConsoleListener | None
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


def _raise_first(failures: Mapping[str, BrushsetError]) -> None:
    for error in failures.values():
        raise AlreadyTold(error)


def _run_one(name: str, options: Options, stages: Sequence[Stage[Any]], events: EventLog, leg: Leg) -> Outcome:
    spec, reason = _resolved(name, options, touch=True)
    images = source_digest(spec.images_dir(PROJECT))
    known = [stage.name for stage in stages]
    if leg.until is None or known.index(leg.until) >= known.index("train"):
        # A base of another family, or one that cannot be had, is to be told before hours of captioning.
        resolve_base(spec.base.model, spec.base.revision, events)
    ask = Ask(spec, images, reason, until=leg.until, force=leg.force)
    return run_style(ask, stages, RunsDir(options.runs_dir.absolute()), events)


def _redo(name: str, options: Options, stages: Sequence[Stage[Any]], stage: Stage[Any], events: EventLog) -> Outcome:
    runs = RunsDir(options.runs_dir.absolute())
    run = runs.latest(name)
    manifest = read_manifest(run) if run else None
    if run is None or manifest is None:
        raise UsageError(f"{options.runs_dir}/{name}: no run yet; fix: orchestrate.py --style {name}")
    kept = load_style(run.spec)
    spec = load_style(run.spec, layers=options.layers(), settings=options.settings)
    allowed = OWN_SECTIONS[stage.name]
    changed = [key for key in StyleSpec.model_fields if getattr(kept, key) != getattr(spec, key) and key not in allowed]
    if changed:
        raise UsageError(
            f"{stage.name} works on a run that is trained already ({run.root}): [{changed[0]}] cannot be changed there; "
            f"fix: orchestrate.py --style {name} with these settings"
        )
    ask = Ask(
        spec, manifest.images, manifest.engine_reason,
        until=stage.name, force=options.force, start=stage.name, stand_on=run,
    )  # fmt: skip
    return run_style(ask, stages, runs, events)


def _resolved(name: str, options: Options, *, touch: bool) -> tuple[StyleSpec, str]:
    """The spec with its folder of images and its engine settled, and why that engine."""
    spec = load_spec(name, options, images=find_images(name, options, touch=touch))
    check_targets(spec.export.targets)
    engine, reason = choose_engine(spec.train.engine, may_fetch=touch)
    changes: dict[str, Any] = {"train": spec.train.model_copy(update={"engine": engine})}
    if engine == "kohya" and spec.base.model == "random:tiny":
        changes["base"] = spec.base.model_copy(update={"model": "random:sd15"})
        reason += "; base random:sd15, since sd-scripts accepts only full-size SD 1.5"
    return spec.model_copy(update=changes), reason


def _legs(names: Sequence[str], stages: Sequence[str], *, until: str | None, force: str | None) -> list[Leg]:
    """One leg, or two where several styles go on to evaluation; a forced stage is redone in the leg that holds it."""
    end = stages.index(FIRST_LEG_ENDS_AT)
    if len(names) == 1 or (until is not None and stages.index(until) <= end):
        return [Leg(until, force)]
    early = force is not None and stages.index(force) <= end
    return [Leg(FIRST_LEG_ENDS_AT, force if early else None), Leg(until, None if early else force)]


def _show_audit(name: str, audit: Audit, images: Sequence[AuditedImage], options: Options) -> None:
    if options.json:
        print_event("audit", {"style": name, **audit.model_dump(mode="json")})
        return
    table = Table("style", "images", "ok", "to upscale", "unusable", "shorter side", "formats", "captions", "verdict")
    formats = ", ".join(f"{kind} {count}" for kind, count in sorted(audit.formats.items()))
    sides = f"{audit.min_side_px}–{audit.median_side_px}–{audit.max_side_px} px"
    numbers = [str(value) for value in (audit.found, audit.ok, audit.needs_upscaling, audit.unusable)]
    table.add_row(name, *numbers, sides, formats, str(audit.with_sidecar), audit.verdict)
    stdout.print(table)
    for reason in audit.reasons:
        stdout.print(f"  {reason}", markup=False)
    for image in images:
        if image.verdict == "unusable":
            stderr.print(f"  {image.path!r}: {image.reason}", markup=False)
