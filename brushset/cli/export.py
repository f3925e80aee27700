"""`export` and `verify-export`: packages for the UIs, into a UI's folder, onto the hub; and any package read again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from brushset.cli.guard import print_event, stderr, stdout
from brushset.cli.options import Options
from brushset.cli.rework import work_on_run
from brushset.cli.sources import style_names
from brushset.errors import UsageError, VerificationFailed
from brushset.files import shown
from brushset.paths import RunPaths, RunsDir
from brushset.pipeline import Stage
from webui_export.install import find_ui, install_package
from webui_export.stage import check_targets
from webui_export.verify import verify_package

if TYPE_CHECKING:
    from webui_export.install import Installed
    from webui_export.verify import Verification

To = Annotated[
    list[str] | None,
    typer.Option(
        "--to", metavar="UI…", help="Some of a1111 forge comfyui invokeai swarmui; default: what the style says, all."
    ),
]
Install = Annotated[Path | None, typer.Option(metavar="DIR", help="Then copy it into this UI's own folder.")]
Replace = Annotated[bool, typer.Option("--replace", help="With --install: write over another file of that name.")]
Push = Annotated[
    str | None, typer.Option("--push-to-hub", metavar="NAME/REPO", help="Then upload it to the HF hub, privately.")
]
Package = Annotated[
    Path, typer.Argument(metavar="DIR", help="What export wrote, one UI's folder, any folder of LoRAs.")
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on stdout, nothing else there.")]


@dataclass(frozen=True)
class ExportAsk:
    """What `export` was told besides the shared options."""

    to: tuple[str, ...] = ()
    install: Path | None = None
    replace: bool = False
    push: str | None = None


def export_run(stages: Sequence[Stage[Any]], options: Options, stage: Stage[Any], ask: ExportAsk) -> None:
    """Packs the newest run of each style that is meant; then installs and uploads what was packed.

    Raises:
        UsageError: a UI that there is not, `--replace` without `--install`, or one repository for several styles.
        VerificationFailed: a package that a UI would not take as it is meant; nothing was published.
    """
    if ask.replace and ask.install is None:
        raise UsageError("--replace goes with --install DIR")
    runs = RunsDir(options.runs_dir.absolute())
    names = style_names(options) if options.style else runs.styles()
    if ask.push is not None and len(names) != 1:
        raise UsageError(f"--push-to-hub {ask.push}: one repository holds one style; fix: --style NAME with it")
    if ask.to:
        check_targets(ask.to)
    if ask.install is not None:
        find_ui(ask.install)
    work_on_run(stages, _with_targets(options, ask.to), stage)
    for run in filter(None, map(runs.latest, names)):
        if ask.install is not None:
            _install(run, ask, as_json=options.json)
        if ask.push is not None:
            _push(run, ask.push, as_json=options.json)


def verify_export(folder: Path, *, as_json: bool) -> None:
    """Reads a package again as each UI does.

    Raises:
        VerificationFailed: everything that is not right, a line each.
    """
    found = verify_package(folder)
    if as_json:
        print_event("verification", verification_json(folder, found))
    for line in [] if as_json else verification_lines(found):
        stdout.print(line, markup=False)
    if found.faults:
        raise VerificationFailed.of_many([f"{shown(folder)}: {fault}" for fault in found.faults])
    if not as_json:
        stdout.print(f"{shown(folder)}: all right", markup=False)


def verification_lines(found: Verification) -> list[str]:
    """A line a file: what of it each UI applies."""
    lines = []
    for name, check in found.loras.items():
        applied = ", ".join(f"{ui} {count}" for ui, count in check.applied.items())
        lines.append(f"{'✗' if check.faults else '✓'} {name}: of {check.modules} modules {applied or 'none'}")
    return [*lines, *(f"! {note}" for note in found.notes)]


def verification_json(folder: Path, found: Verification) -> dict[str, Any]:
    """The same for machines."""
    files = {name: {"modules": check.modules, "applied": dict(check.applied)} for name, check in found.loras.items()}
    return {"folder": str(folder), "files": files, "faults": list(found.faults), "notes": list(found.notes)}


def _with_targets(options: Options, to: Sequence[str]) -> Options:
    if not to:
        return options
    quoted = ", ".join(f'"{target}"' for target in dict.fromkeys(to))
    return dataclasses.replace(options, settings=[*options.settings, f"export.targets=[{quoted}]"])


def _install(run: RunPaths, ask: ExportAsk, *, as_json: bool) -> None:
    assert ask.install is not None
    done = install_package(run.export, ask.install, replace=ask.replace)
    if as_json:
        print_event("installed", {"style": run.style, "folder": str(ask.install), **dataclasses.asdict(done)})
        return
    for line in install_lines(done, ask.install):
        stdout.print(line, markup=False)
    for warning in done.warnings:
        stderr.print(warning, style="yellow", markup=False)


def install_lines(done: Installed, folder: Path) -> list[str]:
    """What was copied, and what was there."""
    lines = [f"{shown(folder / name)}" for name in done.written]
    told = f"{done.ui} in {shown(folder)}: {len(done.written)} files copied"
    return [*lines, told + (f", {len(done.there)} there already" if done.there else "")]


def _push(run: RunPaths, repository: str, *, as_json: bool) -> None:
    from webui_export.push import push_to_hub, told_captions

    if tags := told_captions(run.export / "hub"):
        warning = (
            f"{tags} tags of your captions stand in the file's header; --set export.tag_frequency=none leaves them out"
        )
        stderr.print(warning, style="yellow", markup=False)
    address = push_to_hub(run.export / "hub", repository)
    if as_json:
        print_event("pushed", {"style": run.style, "address": address})
    else:
        stdout.print(
            f"{address}  (a new repository is private until you change that on its settings page)", markup=False
        )
