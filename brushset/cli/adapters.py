"""`convert FILE`, `inspect`, `resize`, `metadata` and `doctor FILE`: work on any adapter file or folder a user has.

Each reads the file as it is and writes a new one; none changes what it was given, nor replaces a file without
`--replace`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from brushset.cli.adapter_text import (
    inspection_json,
    inspection_lines,
    metadata_lines,
    resize_lines,
    symptom_lines,
)
from brushset.cli.guard import print_event, stdout
from brushset.errors import EnvironmentProblem, UsageError, VerificationFailed
from brushset.lora.adapter import WEIGHT_NAME, adapter_files
from brushset.lora.diagnosis import diagnose
from brushset.lora.inspection import inspect_file
from brushset.lora.metadata import read_metadata
from brushset.lora.metadata_edit import edit, strip, write_edited

FORMS = ("kohya", "diffusers")

Adapter = Annotated[
    Path, typer.Argument(metavar="FILE", help="A LoRA's .safetensors file, or a folder that holds one.")
]
MaybeAdapter = Annotated[
    Path | None, typer.Argument(metavar="FILE", help="A LoRA's .safetensors file, or a folder that holds one.")
]
To = Annotated[str | None, typer.Option("--to", metavar="kohya|diffusers", help="The form to write FILE in.")]
Out = Annotated[Path | None, typer.Option(help="File or folder to write to; default: here, named after FILE.")]
Replace = Annotated[bool, typer.Option("--replace", help="Write over an older result.")]
Verify = Annotated[bool, typer.Option("--verify/--no-verify", help="Prove both forms equal before one is kept.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on stdout, nothing else there.")]
Chart = Annotated[Path | None, typer.Option(metavar="PNG", help="Draw the norms by block into this file.")]
Rank = Annotated[int | None, typer.Option(help="Rank of every module, at most.")]
Energy = Annotated[float | None, typer.Option(help="Share of each module's energy to keep, such as 0.95.")]
Edits = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a field; KEY= removes it.")]
Trigger = Annotated[str | None, typer.Option(help="Sets modelspec.trigger_phrase.")]
Title = Annotated[str | None, typer.Option(help="Sets modelspec.title.")]
Keep = Annotated[
    str | None, typer.Option(metavar="full|minimal|none", help="How much to keep; minimal has no captions.")
]
UnetOnly = Annotated[bool, typer.Option("--unet-only", help="FILE is meant to have no text encoder.")]


@dataclass(frozen=True)
class Writing:
    """Where a result goes."""

    out: Path | None = None
    replace: bool = False

    def target(self, source: Path, *, suffix: str, name: str = "") -> Path:
        """The file to write: `out`, or in it where it is a folder; else in the current folder, named after the source
        and `suffix`. With a `name` the file is called so, in a folder of its own.

        Raises:
            UsageError: it is there already, or is the source.
            EnvironmentProblem: the folder cannot be written.
        """
        meant = source.absolute().parent if source.name == WEIGHT_NAME else source.absolute()
        default = Path(f"{meant.stem}-{suffix}") / name if name else Path(f"{meant.stem}-{suffix}.safetensors")
        if self.out is None:
            target = default
        elif self.out.suffix == ".safetensors":
            target = self.out
        else:
            target = self.out / (name or default)
        if target.exists() and any(target.samefile(file) for file in adapter_files(source)):
            raise UsageError(f"{target}: is the file to read; fix: --out with another name")
        if target.exists() and not self.replace:
            raise UsageError(f"{target}: is there already; fix: --replace, or --out with another name")
        folder = next(folder for folder in target.absolute().parents if folder.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise EnvironmentProblem(f"{folder}: cannot be written into; fix: --out with another folder")
        return target


def refuse_without_file(to: str | None, out: Path | None) -> None:
    """Raises UsageError where `convert` got options that only mean something with a file."""
    if to is not None or out is not None:
        raise UsageError("convert: --to and --out go with a file: orchestrate.py convert FILE --to kohya|diffusers")


def named_edits(edits: Sequence[str] | None, *, trigger: str | None, title: str | None) -> list[str]:
    """All changes as `key=value`, the options' own behind those of `--set`."""
    named = {"modelspec.trigger_phrase": trigger, "modelspec.title": title}
    return [*(edits or ()), *(f"{key}={value}" for key, value in named.items() if value is not None)]


def convert_file(file: Path, to: str | None, writing: Writing, *, verify: bool, as_json: bool) -> None:
    """Writes a file in another form, proven equal.

    Raises:
        UsageError: no such form, or a file that is no SD 1.5 LoRA.
        VerificationFailed: a file that is broken, or forms that are not equal.
    """
    from brushset.lora.adapter import read_adapter
    from brushset.lora.convert import convert_adapter, report_path

    if to not in FORMS:
        raise UsageError(f"--to {to or '(missing)'}: name the form to write, one of {', '.join(FORMS)}")
    adapter = read_adapter(file)
    target = writing.target(file, suffix=to, name=WEIGHT_NAME if to == "diffusers" else "")
    conversion = convert_adapter(adapter, "kohya" if to == "kohya" else "diffusers", target, verify=verify)
    if as_json:
        print_event("conversion", {**conversion.report(), "result": str(target)})
        return
    _say(f"{file}: {' + '.join(adapter.layouts)} → {to}, {len(adapter.factors)} modules")
    if not adapter.alpha_stated:
        ranks = ", ".join(map(str, adapter.ranks))
        _say(f"  alpha: the file states none; taken as the rank ({ranks}), as diffusers does")
        if (said := _trained_alpha(adapter.metadata)) and [said] != adapter.ranks:
            _say(f"  ! its metadata says alpha {said:g}: it was lost on the way, so strength is not as trained")
    if adapter.dead:
        _say("  ! all modules add nothing: up or down is zero in each; equal, and without effect, in either form")
    _say(f"  {conversion.told()}")
    _say(f"{target}")
    _say(f"{report_path(target)}")


def _trained_alpha(metadata: Mapping[str, str]) -> float:
    """What the trainer says of alpha; 0 where it says nothing."""
    try:
        return float(metadata.get("ss_network_alpha", "0"))
    except ValueError:
        return 0.0


def inspect(file: Path, chart: Path | None, *, as_json: bool) -> None:
    """Tells what a file says and holds.

    Raises:
        UsageError: not a LoRA file.
        VerificationFailed: keys that make no sense.
    """
    for part in adapter_files(file):
        facts = inspect_file(part)
        if as_json:
            print_event("inspection", inspection_json(facts))
        else:
            for line in inspection_lines(facts, stdout.width):
                _say(line)
        if chart is not None:
            from brushset.page.norms import draw_norms

            if not facts.modules:
                raise UsageError(f"{part}: {facts.foreign}; there are no norms to draw")
            draw_norms(facts.blocks(), part.name, chart)
            if not as_json:
                _say(f"chart     {chart}")


def resize_file(file: Path, rank: int | None, energy: float | None, writing: Writing, *, as_json: bool) -> None:
    """Writes a file of lower rank, in Kohya's form.

    Raises:
        UsageError: neither or both of rank and energy.
    """
    from brushset.lora.adapter import read_adapter
    from brushset.lora.resize import resize, write_resized

    adapter = read_adapter(file)
    factors, report = resize(adapter.factors, rank=rank, energy=energy)
    suffix = f"rank{rank}" if energy is None else f"energy{energy:g}"
    target = writing.target(file, suffix=suffix)
    write_resized(adapter, factors, report, target)
    if as_json:
        modules = {name: vars(module) for name, module in report.modules.items()}
        print_event("resize", {"result": str(target), "energy": report.energy, "modules": modules})
        return
    for line in resize_lines(report):
        _say(line)
    _say(f"{file.name} {_megabytes(file)} → {target} {_megabytes(target)}")


def metadata(file: Path, changes: Sequence[str], keep: str | None, writing: Writing, *, as_json: bool) -> None:
    """Shows a file's metadata; with changes or a level, writes a new file that has them.

    Raises:
        UsageError: a change that is none, a level that is none.
    """
    files = adapter_files(file)
    if len(files) > 1:
        raise UsageError(f"{file}: holds {len(files)} files; fix: name one")
    source, told = files[0], read_metadata(files[0])
    if not changes and keep is None:
        if as_json:
            print_event("metadata", {"file": str(source), "metadata": told})
        for line in [] if as_json else metadata_lines(told, stdout.width):
            _say(line)
        return
    wanted = edit(strip(told, keep or "full"), changes)
    target = writing.target(source, suffix=keep if keep and not changes else "edited")
    written = write_edited(source, target, wanted)
    if as_json:
        print_event("metadata", {"file": str(target), "metadata": written})
        return
    gone, new = sorted(told.keys() - written.keys()), sorted(key for key in written if written[key] != told.get(key))
    _say(f"removed   {', '.join(gone) or 'nothing'}")
    _say(f"written   {', '.join(new) or 'nothing new'}")
    _say(f"{target}: tensors as they were, {len(written)} fields")


def diagnose_file(file: Path, *, unet_only: bool, as_json: bool) -> None:
    """Tells why a LoRA does nothing, or too much.

    Raises:
        VerificationFailed: something keeps it from working; a line each.
    """
    broken = []
    for part in adapter_files(file):
        symptoms = diagnose(part, text_encoder=not unet_only)
        for symptom in symptoms:
            if as_json:
                print_event("symptom", {"file": str(part), **vars(symptom)})
        for line in [] if as_json else symptom_lines(part, symptoms):
            _say(line)
        broken += [f"{part}: {each.what}: {each.found}" for each in symptoms if each.level == "broken"]
    if broken:
        raise VerificationFailed.of_many(broken)


def _megabytes(path: Path) -> str:
    files = adapter_files(path)
    return f"{sum(file.stat().st_size for file in files) / 1e6:.1f} MB"


def _say(text: str) -> None:
    stdout.print(text, markup=False)
