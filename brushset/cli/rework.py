"""Commands that do one stage on a run that is trained already: earlier stages are taken as they stand."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from brushset.cli.devices import see_only
from brushset.cli.guard import listen
from brushset.cli.options import Options
from brushset.cli.project import update_project
from brushset.cli.runs import failure_of, raise_first
from brushset.cli.sources import style_names
from brushset.errors import BrushsetError, UsageError
from brushset.load import load_style
from brushset.log import EventLog
from brushset.manifest import read_manifest
from brushset.paths import RunPaths, RunsDir
from brushset.pipeline import Stage
from brushset.session import Ask, Outcome, run_style
from brushset.spec import StyleSpec
from brushset.stage_records import load_record

OWN_SECTIONS = {"choose": ("evaluate",), "convert": (), "evaluate": ("evaluate",), "export": ("export",), "report": ()}
CHOICE = "choose"


def work_on_run(stages: Sequence[Stage[Any]], options: Options, stage: Stage[Any]) -> None:
    """Does one stage on the newest run of each style that is meant."""
    runs = RunsDir(options.runs_dir.absolute())
    see_only(options.gpus)
    asked = bool(options.style)
    names = style_names(options) if asked else runs.styles()
    if not names:
        raise UsageError(f"{options.runs_dir}: no run yet; fix: orchestrate.py --style NAME")
    events, listener = listen(options, len(stages))
    failures: dict[str, BrushsetError] = {}
    for name in names:
        failures |= failure_of(name, partial(_redo, name, options, stages, stage, events), options, listener)
    if stage.name == "report":
        failures |= failure_of("all styles", partial(update_project, names, runs, events), options, listener)
    raise_first(failures)


def _redo(name: str, options: Options, stages: Sequence[Stage[Any]], stage: Stage[Any], events: EventLog) -> Outcome:
    runs = RunsDir(options.runs_dir.absolute())
    run = runs.latest(name)
    manifest = read_manifest(run) if run else None
    if run is None or manifest is None:
        raise UsageError(f"{options.runs_dir}/{name}: no run yet; fix: orchestrate.py --style {name}")
    kept = load_style(run.spec)
    spec = load_style(run.spec, layers=options.layers(), settings=options.settings)
    allowed = (*OWN_SECTIONS[stage.name], "executor")
    changed = [key for key in StyleSpec.model_fields if getattr(kept, key) != getattr(spec, key) and key not in allowed]
    if changed:
        raise UsageError(
            f"{stage.name} works on a run that is trained already ({run.root}): [{changed[0]}] cannot be changed there; "
            f"fix: orchestrate.py --style {name} with these settings"
        )
    ask = Ask(
        spec, manifest.images, manifest.engine_reason,
        until=stage.name, force=options.force, start=_start(stage.name, run), stand_on=run,
    )  # fmt: skip
    return run_style(ask, stages, runs, events)


def _start(stage: str, run: RunPaths) -> str:
    """Where work on a finished run begins. [evaluate] rules the choice too, so that evaluation begins there; and a run that
    is older than the choice has none yet.
    """
    chooses = stage == "evaluate" or load_record(run, CHOICE) is None
    return CHOICE if chooses else stage
