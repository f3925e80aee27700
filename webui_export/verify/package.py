"""A whole package, read again as each UI reads it: what is not right is a line that names the file.

DIR may be what `export` wrote, one UI's folder of it, or any folder that holds LoRA files. Files that are hard links of
one another are looked at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from brushset.errors import UsageError
from brushset.files import list_files, sha256_file
from brushset.lora.kinds import some
from webui_export.verify.beside import card_faults, picture_faults, preview_faults, stray_faults
from webui_export.verify.card import model_card_faults
from webui_export.verify.comfy_package import LORAS, comfy_faults
from webui_export.verify.lora import LoraCheck, check_lora

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


@dataclass(frozen=True)
class Verification:
    """What was found: file below the folder → its check; faults, a line each; notes, which break nothing."""

    loras: Mapping[str, LoraCheck]
    faults: Sequence[str]
    notes: Sequence[str]


def verify_package(root: Path) -> Verification:
    """Re-reads every file of a package.

    Raises:
        UsageError: no such folder.
    """
    if not root.is_dir():
        raise UsageError(f"{root}: no such folder; fix: the folder that export wrote, or one UI's of it")
    files = list_files(root)
    loras = [path for path in files if path.suffix == ".safetensors"]
    checks = _checks(loras)
    named = {path.relative_to(root).as_posix(): check for path, check in checks.items()}
    found: list[tuple[Path, str]] = (
        [] if loras else [(root, "no .safetensors file: there is nothing that a UI could load")]
    )
    found += [(path, fault) for path, check in _first_of_each(checks).items() for fault in check.faults]
    found += _beside(checks)
    found += _links(root)
    found += _names(root, loras)
    for comfy in _comfy_roots(root):
        triggers = {path.name: check.metadata.get("modelspec.trigger_phrase", "") for path, check in checks.items()}
        found += comfy_faults(comfy, triggers)
    for card in (path for path in files if path.name == "README.md"):
        found += [(card, fault) for fault in model_card_faults(card)]
    found += _sums(root, files)
    notes = dict.fromkeys(f"{name}: {note}" for name, check in named.items() for note in check.notes)
    return Verification(named, [_told(path, fault, root) for path, fault in found], _merged(notes))


def write_sums(root: Path) -> None:
    """Writes SHA256SUMS, as `sha256sum -c` reads it, over all files below."""
    digests = {path: sha256_file(path) for path in list_files(root)}
    lines = [f"{digest}  {path.relative_to(root).as_posix()}\n" for path, digest in digests.items()]
    (root / SUMS).write_text("".join(sorted(lines, key=lambda line: line[66:])), encoding="utf-8")


def _checks(loras: Sequence[Path]) -> dict[Path, LoraCheck]:
    """File → its check; hard links share one."""
    kept: dict[tuple[int, int, str], LoraCheck] = {}
    checks = {}
    for path in loras:
        status = path.stat()
        key = (status.st_dev, status.st_ino, path.name)
        if key not in kept:
            kept[key] = check_lora(path)
        checks[path] = kept[key]
    return checks


def _first_of_each(checks: Mapping[Path, LoraCheck]) -> dict[Path, LoraCheck]:
    """Of hard links the first alone: one fault is told once."""
    seen: dict[int, tuple[Path, LoraCheck]] = {}
    for path, check in checks.items():
        seen.setdefault(id(check), (path, check))
    return dict(seen.values())


def _beside(checks: Mapping[Path, LoraCheck]) -> Iterator[tuple[Path, str]]:
    for path, check in checks.items():
        folder = path.parent
        for fault in (*card_faults(path, check.metadata), *preview_faults(path, check.metadata)):
            yield folder, fault
    folders = {path.parent for path in checks}
    for folder in sorted(folders):
        stems = {path.stem for path in checks if path.parent == folder}
        yield from ((folder, fault) for fault in stray_faults(folder, stems))
        for picture in sorted(folder.glob("*.preview.png")):
            if picture.name.removesuffix(".preview.png") not in stems:
                yield from (
                    (folder, fault) for fault in (f"{picture.name}: belongs to no LoRA", *picture_faults(picture))
                )


def _links(root: Path) -> Iterator[tuple[Path, str]]:
    """Links, which a copy would follow, or leave dangling."""
    for path in sorted(root.rglob("*")):
        if path.is_symlink():
            yield path, "is a link; a package holds files"


def _names(root: Path, loras: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """A1111 knows a LoRA by its stem, in whatever folder and, on many disks, whatever case."""
    first: dict[tuple[str, str], Path] = {}
    for path in loras:
        relative = path.relative_to(root)
        ui = relative.parts[0] if len(relative.parts) > 1 else ""
        other = first.setdefault((ui, path.stem.lower()), path)
        if other != path:
            yield path, f"is called like {other.relative_to(root).as_posix()}: A1111 shows only one of them"


def _comfy_roots(root: Path) -> list[Path]:
    """The folders that hold models/loras or workflows: a package's comfyui, or the folder itself."""
    depth = len(Path(LORAS).parts)
    return sorted({path.parents[depth - 1] for path in root.rglob(LORAS) if path.is_dir()})


def _sums(root: Path, files: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """What SHA256SUMS says, where it is there: nothing changed, nothing gone, nothing added."""
    listing = root / SUMS
    if not listing.is_file():
        return
    stated: dict[str, str] = {}
    for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
        if match := _LINE.fullmatch(line):
            stated[match[2]] = match[1]
        else:
            yield listing, f"has a line that is no checksum: {line[:60]!r}"
    there = {path.relative_to(root).as_posix(): path for path in files if path != listing}
    if gone := sorted(stated.keys() - there.keys()):
        yield listing, f"{len(gone)} files are gone: {some(gone)}"
    if added := sorted(there.keys() - stated.keys()):
        yield listing, f"{len(added)} files were not in the package: {some(added)}"
    changed = sorted(name for name in stated.keys() & there.keys() if sha256_file(there[name]) != stated[name])
    if changed:
        yield listing, f"{len(changed)} files are not as they were packed: {some(changed)}"


def _told(path: Path, fault: str, root: Path) -> str:
    name = path.relative_to(root).as_posix()
    return f"{name}/{fault}" if path.is_dir() and name != "." else fault if name == "." else f"{name}: {fault}"


def _merged(notes: Mapping[str, None]) -> list[str]:
    """One line for a note that several copies of a file have."""
    by_text: dict[str, list[str]] = {}
    for note in notes:
        name, _, text = note.partition(": ")
        by_text.setdefault(text, []).append(name)
    return [f"{some(names)}: {text}" for text, names in by_text.items()]
