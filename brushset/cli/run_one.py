"""`run-one RUN_DIR`: the unit that every executor starts, on whichever machine; called again it goes on, or does nothing.

All it needs lies in the run folder: the resolved spec, which names the folder of images and the base in full, and the
images' hashes. So what several machines share is runs/, the images, the base where it is a file, and this project, each
under the same path.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brushset.cli.devices import see_only
from brushset.cli.guard import listen
from brushset.cli.options import Options
from brushset.errors import InputError, UsageError
from brushset.files import shown
from brushset.images import source_digest
from brushset.load import load_style
from brushset.manifest import RunManifest, read_manifest
from brushset.paths import PROJECT, RunPaths, RunsDir
from brushset.pipeline import Stage, load_record, outputs_hold
from brushset.session import Ask, run_style
from brushset.spec import StyleSpec
from brushset.workers import read_workers


def run_one(stages: Sequence[Stage[Any]], options: Options, folder: Path, submission: str) -> None:
    """Takes one run folder through all stages, or to `--until`.

    Raises:
        RunTaken: another process works on it.
        BrushsetError: whatever a stage raises; run.json and workers.jsonl say so too.
    """
    run = RunPaths(folder.resolve())
    manifest = read_manifest(run)
    if manifest is None:
        raise UsageError(f"{shown(folder)}: no run.json that can be read; fix: a folder below runs/<style>/")
    if submission and read_workers(run).cancelled:
        raise UsageError(f"{shown(folder)}: was cancelled; fix: orchestrate.py resume {shown(folder)}")
    spec = load_style(run.spec)
    events, _ = listen(options, len(stages))
    if options.force is None and is_done(run, stages, options.until):
        events("note", text=f"{shown(folder)}: nothing to do")
        return
    _require_same_images(spec, manifest)
    see_only(options.gpus)
    ask = Ask(
        spec, manifest.images, manifest.engine_reason,
        until=options.until, force=options.force, run=run, submission=submission,
    )  # fmt: skip
    run_style(ask, stages, RunsDir(run.root.parent.parent), events)


def is_done(run: RunPaths, stages: Sequence[Stage[Any]], until: str | None) -> bool:
    """Whether every stage up to `until` is on record there, made by this version of it, and its outputs verify."""
    names = [stage.name for stage in stages]
    if until is not None and until not in names:
        raise UsageError(f'"{until}" is no stage; stages: {", ".join(names)}')
    for stage in stages[: names.index(until) + 1 if until else None]:
        record = load_record(run, stage.name)
        if record is None or record.version != stage.version or not outputs_hold(run, record):
            return False
    return True


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
