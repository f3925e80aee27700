"""Which files of a folder are images, and what was left out, each with the reason and the fix.

Nothing is left out in silence, and nothing in a subfolder stops the listing: what cannot be had is one line for the
audit to show. Symbolic links are followed to files of the same folder only. Only names are looked at, no file is
opened: 100,000 files in 100 folders take 0.8 s and 32 MiB.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from brushset.errors import InputError
from brushset.files import one_line, shown

# Names that claim an image. Those that we do not decode are here too: they are reported, not overlooked.
# fmt: off
IMAGE_SUFFIXES = frozenset({
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff",
    ".avif", ".heic", ".heif", ".jxl", ".jp2", ".j2k", ".psd", ".xcf", ".tga", ".ico", ".svg", ".exr", ".hdr",
    ".dds", ".ppm", ".pgm", ".pbm", ".pnm",
})
# fmt: on
_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
_COPY_IT = "copy the file itself into the folder"


@dataclass(frozen=True)
class LeftOut:
    """What was asked for by its name and is not among the images. `path` is relative to the folder, and printable:
    a name that is not UTF-8 stands there with escapes.
    """

    path: str
    reason: str
    fix: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}; fix: {self.fix}"


@dataclass(frozen=True)
class Listing:
    """The images of a folder and what was left out, both sorted by path; `others` counts the files that claim nothing."""

    images: tuple[Path, ...]
    left_out: tuple[LeftOut, ...]
    others: int


def list_folder(folder: Path) -> Listing:
    """All files below `folder` whose names claim an image. A text file named .png is in: opening it will tell.

    Hidden folders and what a Mac writes beside a file (`._photo.jpg`) are not looked at.

    Raises:
        InputError: the folder is not there, is no folder, or cannot be read.
    """
    if not folder.exists():
        raise InputError(f"{shown(folder)}: no such folder; fix: put the images there or pass --images DIR")
    if not folder.is_dir():
        raise InputError(f"{shown(folder)}: not a folder; fix: pass the folder that holds it by --images DIR")
    if not _is_utf8(str(folder)):
        raise InputError(f"{shown(folder)}: the folder's name is not UTF-8; fix: rename it")
    return _Walk(folder).listing()


def list_source_images(folder: Path) -> list[Path]:
    """The images of list_folder alone."""
    return list(list_folder(folder).images)


@dataclass
class _Walk:
    """One pass over a folder. Not os.walk: on Python 3.10 it recurses, and a thousand nested folders end it."""

    folder: Path
    images: list[Path] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    others: int = 0

    def listing(self) -> Listing:
        root = self.folder.resolve()
        pending = [self.folder]
        while pending:
            for entry in self._entries(pending.pop()):
                path = Path(entry.path)
                try:
                    if self._is_folder_to_enter(path, entry, root):
                        pending.append(path)
                except OSError as error:
                    self._leave_out(path, f"cannot be read: {error.strerror}", "its permissions, or remove it")
        images = sorted(self.images, key=lambda path: path.as_posix())
        return Listing(tuple(images), tuple(sorted(self.left_out, key=lambda item: item.path)), self.others)

    def _entries(self, parent: Path) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(parent) as entries:
                return [entry for entry in entries if not _is_hidden(entry)]
        except OSError as error:
            if parent == self.folder:
                raise InputError(
                    f"{shown(parent)}: cannot be read: {error.strerror}; fix: its permissions, or pass another folder"
                ) from error
            self._leave_out(parent, f"the folder cannot be read: {error.strerror}", "its permissions, or remove it")
            return []

    def _is_folder_to_enter(self, path: Path, entry: os.DirEntry[str], root: Path) -> bool:
        is_folder = _leads_to_folder(entry)
        if not is_folder and not _claims_image(entry.name):
            self.others += 1
        elif not _is_utf8(entry.name):
            self._leave_out(path, "its name is not UTF-8", "rename it")
        elif entry.is_symlink():
            self._take_link(path, root, is_folder=is_folder)
        elif is_folder:
            return True
        else:
            self._take(path, entry)
        return False

    def _take(self, path: Path, entry: os.DirEntry[str]) -> None:
        if entry.name.startswith("."):
            self._leave_out(path, "hidden: its name begins with a dot", "rename it if it is meant")
        elif entry.is_file():
            self.images.append(path)
        else:
            kind = _KINDS.get(stat.S_IFMT(path.stat().st_mode), "no file")
            self._leave_out(path, f"{kind}, not a file", "remove it")

    def _take_link(self, path: Path, root: Path, *, is_folder: bool) -> None:
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError) as error:  # a RuntimeError is a loop, before Python 3.13
            gone = isinstance(error, FileNotFoundError)
            self._leave_out(path, "a link to nothing" if gone else "a link that leads in a circle", "remove it")
            return
        inside = target.is_relative_to(root)
        if is_folder:
            where = "in this folder, which is listed there" if inside else "outside, which is not entered"
            fix = "none needed" if inside else "copy the folder itself, or pass it by --images"
            self._leave_out(path, f"a link to a folder {where}", fix)
        elif not inside:
            self._leave_out(path, "a link out of the folder", _COPY_IT)
        elif not target.is_file():
            self._leave_out(path, "a link to what is no file", "remove it")
        else:
            self.images.append(path)

    def _leave_out(self, path: Path, reason: str, fix: str) -> None:
        self.left_out.append(LeftOut(one_line(path.relative_to(self.folder).as_posix()), reason, fix))


def _is_hidden(entry: os.DirEntry[str]) -> bool:
    """Hidden folders, and the neighbours that a Mac writes. Another hidden image may be meant: it is reported."""
    return entry.name.startswith("._") or (entry.name.startswith(".") and _leads_to_folder(entry))


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False


def _claims_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122  a Path a name would double the time


def _is_utf8(text: str) -> bool:
    return all(not 0xDC80 <= ord(char) <= 0xDCFF for char in text)
