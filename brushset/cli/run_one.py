"""`run-one RUN_DIR`: the unit that every executor starts, on whichever machine; called again it goes on, or does nothing.
Of several folders, those that an engine packs are trained in one pass, as a GPU's share of a sweep is.

All it needs lies in the run folder: the resolved spec, which names the folder of images and the base in full, and the
images' hashes. So what several machines share is runs/, the images, the base where it is a file, and this project, each
under the same path.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from brushset.cli.devices import see_only
from brushset.cli.guard import AlreadyTold, listen
from brushset.cli.one_pass import run_in_one_pass
from brushset.cli.options import Options
from brushset.cli.runs import failure_of
from brushset.engines import packs
from brushset.errors import BrushsetError, InputError, PartlyFailed, UsageError
from brushset.files import shown
from brushset.images import source_digest
from brushset.load import load_style
from brushset.manifest import RunManifest, read_manifest
from brushset.paths import PROJECT, RunPaths, RunsDir
from brushset.pipeline import Stage, require_stages
from brushset.protocols import Emit
from brushset.session import Ask, run_style
from brushset.spec import StyleSpec
from brushset.stage_records import load_record, outputs_hold
from brushset.workers import read_workers


def run_some(stages: Sequence[Stage[Any]], options: Options, folders: Sequence[Path], submission: str) -> None:
    """Takes run folders through all stages, or to `--until`; several that the same engine packs in one pass.

    Raises:
        RunTaken: another process works on it.
        PartlyFailed: of several not all went well; the others are done.
        BrushsetError: whatever a stage of a single one raises; run.json and workers.jsonl say so too.
    """
    if len(folders) == 1:
        _run_one(stages, options, folders[0], submission)
        return
    runs = {path.resolve().parent.parent for path in folders}
    if len(runs) > 1:
        raise UsageError(f"{' and '.join(map(shown, sorted(runs)))} are two folders of runs; fix: a command each")
    options = dataclasses.replace(options, runs_dir=runs.pop())
    events, listener = listen(options, len(stages))
    asks: list[Ask] = []
    failures: dict[str, BrushsetError] = {}

    def prepare(folder: Path) -> None:
        ask = _ask(stages, options, folder, submission, events)
        asks.extend([ask] if ask else [])

    for folder in folders:
        failures |= failure_of(f"{folder.parent.name} {folder.name}", partial(prepare, folder), options, listener)
    see_only(options.gpus)
    together = [ask for ask in asks if packs(ask.spec.train.engine) and ask.spec.train.pack]
    if together:
        failures |= run_in_one_pass(together, stages, options, lambda _event, _fields: None)
    for ask in asks:
        if ask not in together:
            work = partial(run_style, ask, stages, RunsDir(options.runs_dir), events)
            failures |= failure_of(ask.key, work, options, listener)
    if failures:
        raise AlreadyTold(PartlyFailed(f"{len(failures)} of {len(folders)} runs failed"))


def _run_one(stages: Sequence[Stage[Any]], options: Options, folder: Path, submission: str) -> None:
    events, _ = listen(options, len(stages))
    if ask := _ask(stages, options, folder, submission, events):
        see_only(options.gpus)
        run_style(ask, stages, RunsDir(folder.resolve().parent.parent), events)


def is_done(run: RunPaths, stages: Sequence[Stage[Any]], until: str | None) -> bool:
    """Whether every stage up to `until` is on record there, made by this version of it, and its outputs verify."""
    names = [stage.name for stage in stages]
    require_stages(names, until)
    for stage in stages[: names.index(until) + 1 if until else None]:
        record = load_record(run, stage.name)
        if record is None or record.version != stage.version or not outputs_hold(run, record):
            return False
    return True


def _ask(stages: Sequence[Stage[Any]], options: Options, folder: Path, submission: str, emit: Emit) -> Ask | None:
    """What is to be done there; None where it is done.

    Raises:
        UsageError: no run, or one that was cancelled.
        InputError: its images have changed.
    """
    run = RunPaths(folder.resolve())
    manifest = read_manifest(run)
    if manifest is None:
        raise UsageError(f"{shown(folder)}: no run.json that can be read; fix: a folder below runs/<style>/")
    if submission and read_workers(run).cancelled:
        raise UsageError(f"{shown(folder)}: was cancelled; fix: orchestrate.py resume {shown(folder)}")
    spec = load_style(run.spec)
    if options.force is None and is_done(run, stages, options.until):
        emit("note", text=f"{shown(folder)}: nothing to do")
        return None
    _require_same_images(spec, manifest)
    return Ask(
        spec, manifest.images, manifest.engine_reason,
        until=options.until, force=options.force, run=run, submission=submission, label=f"{run.style} {run.run_id}",
    )  # fmt: skip


def _require_same_images(spec: StyleSpec, manifest: RunManifest) -> None:
    """Raises InputError where the user's images are not those that the run was made for: with others it is another run."""
    folder = spec.images_dir(PROJECT)
    here = source_digest(folder)
    if here == manifest.images:
        return
    changed = sorted(
        name for name in here.keys() | manifest.images.keys() if here.get(name) != manifest.images.get(name)
    )
    raise InputError(
        f"{shown(folder)}: {len(changed)} files are not as they were when this run was made, such as "
        f"{shown(folder / changed[0])}; fix: the command that made it, again, which makes a run of what is there now"
    )
