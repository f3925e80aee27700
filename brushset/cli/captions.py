"""`caption --export FILE` and `--import FILE`: captions edited in a spreadsheet.

Both work on the style's newest run, which is captioned first where it is not, or where options say how it should be.
What comes back is written as the user's edits into images/, and the caption stage then takes them up: they are recorded
as edited, checked like all others, and outlive every later run.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from brushset.bases.tokenizer import load_clip_tokenizer
from brushset.captions.checks import CaptionSet, cut_off
from brushset.captions.effective import CaptionRules
from brushset.captions.sheet import SheetRow, read_sheet, sheet_of
from brushset.captions.text import file_content, read_caption
from brushset.cli.guard import listen, print_event, stdout
from brushset.cli.options import Options
from brushset.cli.runs import run_styles
from brushset.cli.sources import style_names
from brushset.errors import InputError, UsageError
from brushset.files import shown, write_atomic
from brushset.images import sidecar_of
from brushset.load import load_style
from brushset.manifest import read_manifest
from brushset.paths import PROJECT, RunPaths, RunsDir
from brushset.pipeline import Stage
from brushset.records import Captions, Prepared
from brushset.session import Ask, run_style, style_lock
from brushset.spec import StyleSpec
from brushset.stage_records import load_record

_SHOWN = 10


def export_captions(stages: Sequence[Stage[Any]], options: Options, path: Path) -> None:
    """Writes the captions of one style's newest run as CSV.

    Raises:
        UsageError: several styles are meant; or the file is there, and holds captions that the run does not have.
    """
    run = _captioned_run(stages, options)
    record, spec = _captions(run), load_style(run.spec)
    if path.exists():
        _require_nothing_lost(path, run, record)
    write_atomic(path, sheet_of(_rows(run, record, spec)))
    if options.json:
        print_event("captions_exported", {"file": str(path), "images": len(record.captions), "run": str(run.root)})
        return
    stdout.print(f"{shown(path)}: {len(record.captions)} captions of {run.root}", markup=False)
    where = "" if options.runs_dir == Options().runs_dir else f" --runs-dir {shlex.quote(str(options.runs_dir))}"
    command = f"orchestrate.py caption --style {run.style}{where} --import {shlex.quote(shown(path))}"
    stdout.print(f"edit the column caption, then: {command}", markup=False)


def import_captions(stages: Sequence[Stage[Any]], options: Options, path: Path) -> None:
    """Takes the captions of a CSV as the user's edits, into one style's newest run; `--dry-run` only shows them.

    Raises:
        InputError: the file is wrong, row by row; nothing is taken then.
    """
    run = _captioned_run(stages, dataclasses.replace(options, dry_run=False))
    runs = RunsDir(options.runs_dir.absolute())
    with style_lock(runs, run.style):
        current = _current(run, _captions(run))
        changed = read_sheet(path, current, _captions(run).trigger)
        if not options.dry_run:
            for image, text in changed.items():
                write_atomic(run.images / sidecar_of(Path(image)), file_content(text))
    if changed and not options.dry_run:
        _take_up(stages, options, run, runs)
    _show(path, changed, current, options)


def _captioned_run(stages: Sequence[Stage[Any]], options: Options) -> RunPaths:
    """The newest run of the one style that is meant, captioned."""
    names = style_names(options)
    if len(names) != 1:
        raise UsageError(f"--export and --import work on one style, not on {', '.join(names)}; fix: --style NAME")
    plain = Options(style=options.style, runs_dir=options.runs_dir, json=options.json, dry_run=options.dry_run)
    run = RunsDir(options.runs_dir.absolute()).latest(names[0])
    if run is None or options != plain or load_record(run, "caption") is None:
        if options.dry_run:
            raise UsageError(f"{names[0]} is not captioned with these options; fix: leave out --dry-run")
        run_styles(stages, options, until="caption")
        run = RunsDir(options.runs_dir.absolute()).latest(names[0])
    assert run is not None
    return run


def _captions(run: RunPaths) -> Captions:
    record = load_record(run, "caption")
    assert record is not None
    return Captions.model_validate(record.data)


def _current(run: RunPaths, record: Captions) -> dict[str, str]:
    """Image → caption as it stands in its file, which the user may have edited since."""
    current = {}
    for item in record.captions:
        path = run.images / sidecar_of(Path(item.image))
        current[item.image] = read_caption(path) if path.is_file() else item.text
    return current


def _rows(run: RunPaths, record: Captions, spec: StyleSpec) -> list[SheetRow]:
    prepared = load_record(run, "preprocess")
    images = Prepared.model_validate(prepared.data) if prepared else Prepared(images=(), skipped={})
    folder = spec.images_dir(PROJECT)
    originals = {image.name: str(folder / image.source) for image in (*images.images, *images.heldout)}
    encode, decode = load_clip_tokenizer()
    counted = CaptionSet(record.captions, CaptionRules.of(spec), encode, decode)
    current = _current(run, record)
    return [
        SheetRow(
            image=item.image, source=item.source if current[item.image] == item.text else "edited",
            caption=current[item.image], tokens=len(encode(current[item.image])),
            cut_off=cut_off(current[item.image], counted), original=originals.get(item.image, ""),
        )
        for item in record.captions
    ]  # fmt: skip


def _require_nothing_lost(path: Path, run: RunPaths, record: Captions) -> None:
    """An earlier export may hold an evening's work that was never imported."""
    try:
        changed = read_sheet(path, _current(run, record), record.trigger)
    except InputError as error:
        raise UsageError(f"{shown(path)}: is there, and is no export of this run; fix: another name") from error
    if changed:
        raise UsageError(
            f"{shown(path)}: is there, with {len(changed)} captions that the run does not have; fix: --import it, or "
            "another name, or remove it"
        )


def _take_up(stages: Sequence[Stage[Any]], options: Options, run: RunPaths, runs: RunsDir) -> None:
    """Runs the caption stage on the very run, so that it records the edits."""
    manifest = read_manifest(run)
    assert manifest is not None
    events, listener = listen(options, len(stages))
    ask = Ask(
        load_style(run.spec), manifest.images, manifest.engine_reason, until="caption", start="caption", stand_on=run
    )
    try:
        run_style(ask, stages, runs, events)
    finally:
        if listener is not None:
            listener.close()


def _show(path: Path, changed: Mapping[str, str], current: Mapping[str, str], options: Options) -> None:
    if options.json:
        changes = [{"image": image, "before": current[image], "after": text} for image, text in changed.items()]
        print_event("captions_imported", {"file": str(path), "dry_run": options.dry_run, "changes": changes})
        return
    for image, text in list(changed.items())[:_SHOWN]:
        stdout.print(f"  {image}\n    - {current[image]}\n    + {text}", markup=False)
    if len(changed) > _SHOWN:
        stdout.print(f"  … and {len(changed) - _SHOWN} more", markup=False)
    would = "would be changed" if options.dry_run else "changed"
    stdout.print(f"{shown(path)}: {len(changed)} of {len(current)} captions {would}", markup=False)
