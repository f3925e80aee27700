"""Copies a package into the folder of a UI that the user names: finds the UI by what lies there, replaces nothing.

A file is copied under a temporary name and renamed. What lies there already with the same bytes is left; anything else of
that name stops all of it, before the first file is written. No link is followed that leads out of the folder.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from brushset.bases.header import read_header
from brushset.errors import BrushsetError, UsageError
from brushset.files import atomic_file, list_files, sha256_file
from brushset.lora.metadata import model_hash


@dataclass(frozen=True)
class _UI:
    """How a UI's folder is known. `marks` are files that its own checkout has; `loras` is where its LoRAs go."""

    targets: tuple[str, ...]
    name: str
    loras: str
    marks: tuple[tuple[str, ...], ...]


_UIS = (
    _UI(("comfyui",), "ComfyUI", "models/loras", (("main.py", "comfy"), ("main.py", "nodes.py"))),
    _UI(("swarmui",), "SwarmUI", "Models/Lora", (("launch-linux.sh", "src"), ("SwarmUI.sln",))),
    _UI(("a1111", "forge"), "AUTOMATIC1111 or Forge", "models/Lora", (("webui.py", "launch.py"),)),
)
_INVOKE_MARKS = ("invokeai.yaml", "invokeai.example.yaml")
_PORTABLE = ("ComfyUI", "webui", "stable-diffusion-webui", "SwarmUI")  # where bundles keep the UI itself


@dataclass(frozen=True)
class Installed:
    """What was done, files below the UI's folder; `warnings` are lines on what may hide the LoRA there."""

    ui: str
    target: str
    written: Sequence[str]
    there: Sequence[str]
    warnings: Sequence[str]


def install_package(export: Path, folder: Path, *, replace: bool) -> Installed:
    """Copies what belongs into `folder` from the packages below `export`.

    Raises:
        UsageError: no UI that we know lies there, its package was not made, a link leads out, or a file is there that
            differs; every finding.
        EnvironmentProblem: the folder cannot be written.
    """
    ui = find_ui(folder)
    target = next((target for target in ui.targets if (export / target).is_dir()), None)
    if target is None:
        raise UsageError(f"{folder}: is {ui.name}'s, which was not packed; fix: --to {ui.targets[0]}")
    own = sorted((export / "hub").glob("*.safetensors"))
    plan = _plan(export / target, folder)
    findings, wanted, there = [], {}, []
    for name, source in plan.items():
        if finding := _leads_out(folder, name):
            findings.append(finding)
        elif _same(source, folder / name, own=own):
            there.append(name)
        elif finding := _in_the_way(source, folder / name, replace=replace):
            findings.append(finding)
        else:
            wanted[name] = source
    if findings:
        raise UsageError.of_many(findings)
    for name, source in wanted.items():
        with atomic_file(folder / name) as out, source.open("rb") as file:
            shutil.copyfileobj(file, out)
    warnings = tuple(
        _hidden(folder / ui.loras, [source for source in plan.values() if source.suffix == ".safetensors"])
    )
    return Installed(ui.name, target, tuple(wanted), tuple(there), warnings)


def find_ui(folder: Path) -> _UI:
    """The UI whose folder this is, by its LoRA folder, else by its own files.

    Raises:
        UsageError: none that we know, or InvokeAI, which takes no files.
    """
    if not folder.is_dir():
        raise UsageError(f"--install {folder}: no such folder; fix: the folder that the UI was installed into")
    for ui in _UIS:
        if _has(folder, ui.loras):
            return ui
    names = {path.name for path in folder.iterdir()}
    for ui in _UIS:
        if any(set(marks) <= names for marks in ui.marks):
            return ui
    if names & set(_INVOKE_MARKS):
        raise UsageError(
            f"--install {folder}: InvokeAI takes no files into its folder; fix: its Model Manager, Add Model, with the path "
            "of the .safetensors file under export/invokeai"
        )
    inside = [name for name in _PORTABLE if (folder / name).is_dir()]
    hint = f"did you mean {folder / inside[0]}?" if inside else "fix: the folder that holds the UI's models folder"
    looked = ", ".join(ui.loras for ui in _UIS)
    raise UsageError(f"--install {folder}: no UI that is known lies there (looked for {looked}); {hint}")


def _plan(package: Path, folder: Path) -> dict[str, Path]:
    """Name below the UI's folder → file of the package; only what the UI's own folders hold."""
    tops = ("models", "Models", "user")
    names = {path.relative_to(package).as_posix(): path for path in list_files(package)}
    return {name: path for name, path in names.items() if name.partition("/")[0] in tops and folder.is_dir()}


def _has(folder: Path, below: str) -> bool:
    """Whether the very names are there: disks that ignore case would take Models/Lora for models/Lora."""
    here = folder
    for name in below.split("/"):
        if not here.is_dir() or name not in {path.name for path in here.iterdir()}:
            return False
        here /= name
    return here.is_dir()


def _leads_out(folder: Path, name: str) -> str:
    """Why a file may not be written there: a folder on the way is a link to elsewhere."""
    root, here = folder.resolve(), folder
    for part in Path(name).parent.parts:
        here /= part
        if here.is_symlink() and not here.resolve().is_relative_to(root):
            fix = "--install with the folder that it leads to, or copy by hand"
            return f"{here}: is a link to {here.resolve()}, outside of {folder}; fix: {fix}"
        if here.exists() and not here.is_dir():
            return f"{here}: is a file, where a folder belongs"
    return ""


def _same(source: Path, target: Path, *, own: Sequence[Path]) -> bool:
    """Whether the file is there. Of another style's LoRA, which comes along for a mix, the tensors decide: its own
    export adds a thumbnail.
    """
    if target.is_symlink() or not target.is_file():
        return False
    if sha256_file(source) == sha256_file(target):
        return True
    return _is_companion(source, own) and _tensors(source) == _tensors(target)


def _in_the_way(source: Path, target: Path, *, replace: bool) -> str:
    """Why a file that is not there yet may not be written; empty where it may."""
    if not os.path.lexists(target):
        return ""
    if target.is_dir():
        return f"{target}: is a folder"
    if replace and not target.is_symlink():
        return ""
    if target.is_symlink():
        return f"{target}: is a link to {target.readlink()}; fix: remove it"
    same = source.suffix == ".safetensors" and _tensors(source) == _tensors(target)
    what = "holds the same tensors under another header" if same else "is there already, and is another file"
    return f"{target}: {what}; fix: --replace, or move it away"


def _is_companion(source: Path, own: Sequence[Path]) -> bool:
    return source.suffix == ".safetensors" and source.name not in {path.name for path in own}


def _tensors(path: Path) -> str:
    try:
        return model_hash(path)
    except BrushsetError:
        return ""


def _hidden(loras: Path, ours: Sequence[Path]) -> Iterator[str]:
    """Other files that a UI would call like one of ours: the same stem in another folder, or the same ss_output_name."""
    names: Mapping[str, str] = {path.stem.lower(): path.name for path in ours}
    for path in list_files(loras):
        if path.suffix != ".safetensors" or (path.parent == loras and path.name in names.values()):
            continue
        for name in dict.fromkeys((path.stem, _alias(path))):
            if name.lower() in names:
                yield f"{path}: is called {name} too; A1111 and Forge may take it for {names[name.lower()]}; fix: move it away"
                break


def _alias(path: Path) -> str:
    try:
        return read_header(path).metadata.get("ss_output_name", "")
    except BrushsetError:
        return ""
