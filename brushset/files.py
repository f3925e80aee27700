"""How files are read, written and recognised: digests, atomic writes, TOML and JSON.

A file appears under its final name whole or not at all: content goes to a temporary neighbour, is flushed to
disk and renamed. Measured on a full disk: plain `open()` leaves a truncated file under the final name, this
leaves the old file as it was and no litter.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import tomli_w

from brushset.errors import EnvironmentProblem, UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_CHUNK_BYTES = 1 << 20


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_json(value: object) -> str:
    """SHA-256 of a value's canonical JSON: sorted keys, no spaces, so equal values have equal digests."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write into, which appears under `path` once the block ends well; else nothing changes there.

    Raises:
        EnvironmentProblem: the disk is full or the folder cannot be written; an older file is still there.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise EnvironmentProblem(
            f"{path}: cannot be written: {error.strerror}; fix: free the disk or its permissions"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Writes text as UTF-8, or bytes, under `path`, whole or not at all. Raises as `atomic_file` does."""
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: object) -> None:
    """Writes `value` as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def read_json(path: Path) -> Any:
    """Reads JSON.

    Raises:
        UsageError: the file is not there or does not parse; the message names it.
    """
    return _parse(path, json.loads)


def read_toml(path: Path) -> dict[str, Any]:
    """Reads TOML.

    Raises:
        UsageError: the file is not there or does not parse; the message names it.
    """
    return dict(_parse(path, tomllib.loads))


def toml_text(tables: Mapping[str, Any]) -> str:
    """TOML text of nested tables. `tomli_w` because what it writes reads back equal in `toml`, which sd-scripts
    uses, and in `tomllib`; the `toml` package itself garbles backslashes and control characters.
    """
    return tomli_w.dumps(tables)


def parse_toml_value(text: str) -> Any:
    """The value of one `--set key=value`: TOML where it parses (`3`, `true`, `[1, 2]`), else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def publish_folder(temporary: Path, final: Path) -> None:
    """Renames a finished folder to its final name; an older one there is removed only once the new one stands."""
    retired = final.with_name(f".old-{final.name}-{os.getpid()}")
    if final.exists():
        final.rename(retired)
    temporary.rename(final)
    shutil.rmtree(retired, ignore_errors=True)


def merge_folder(temporary: Path, final: Path) -> None:
    """Renames each file of a finished folder into an existing one, and removes the emptied folder."""
    for file in list_files(temporary):
        target = final / file.relative_to(temporary)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)
    shutil.rmtree(temporary, ignore_errors=True)


def list_files(folder: Path) -> list[Path]:
    """All regular files below `folder`, sorted; symbolic links are not followed."""
    found = []
    for parent, _, names in os.walk(folder):
        found += [Path(parent) / name for name in names]
    return sorted(path for path in found if path.is_file() and not path.is_symlink())


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-links a file that nobody edits in place; copies it where the file system cannot link."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def digest_files(paths: Iterable[Path], root: Path) -> dict[str, str]:
    """Path below `root` → SHA-256, in sorted order."""
    return {path.relative_to(root).as_posix(): sha256_file(path) for path in sorted(paths)}


def shown(path: Path) -> str:
    """A path on one line for people: relative to where they stand where that is shorter, control characters escaped."""
    try:
        text = path.absolute().relative_to(Path.cwd()).as_posix()
    except ValueError:
        text = str(path)
    return one_line(text)


def one_line(text: str) -> str:
    """`text` with what cannot be printed (newlines, control characters, broken bytes) as escapes."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _parse(path: Path, parse: Any) -> Any:
    try:
        return parse(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise UsageError(f"{shown(path)}: no such file") from error
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise UsageError(f"{shown(path)}: cannot be read: {error}") from error
