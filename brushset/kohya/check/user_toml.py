r"""Reads a TOML file that somebody wrote, as sd-scripts would, and says in plain words why it cannot be read.

sd-scripts parses with the `toml` package, which is older and narrower than TOML 1.0 and names neither column nor cause
well; where it refuses, the cause is looked for in the text. A byte-order mark in front of a plain key is no error to it
at all: the key is then another one, and silently lost (measured: `toml.loads("\ufefflearning_rate = 1")`).
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brushset.kohya.check.findings import Finding
from brushset.kohya.check.findings import Path as Place
from brushset.kohya.check.toml_causes import find_cause

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_BOMS = ((b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"), (b"\xef\xbb\xbf", "UTF-8 with a byte-order mark"))
_POSITION = re.compile(r"\(at line (\d+), column (\d+)\)|\(line (\d+) column (\d+) char \d+\)")
_HEADER = re.compile(r"^\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(#.*)?$")
_KEY = re.compile(r"""^\s*(?:"([^"]+)"|'([^']+)'|([A-Za-z0-9_.\-]+))\s*=\s*(.*)$""")
_ESCAPES = {"\t": "\\t", "\n": "\\n", "\r": "\\r", "\b": "\\b", "\f": "\\f"}
_PATH_KEY = re.compile(r"(_dir|_path|_file|_weights|_prompts|_config)$|^(vae|resume)$")


@dataclass(frozen=True)
class UserToml:
    """A file as read. `tables` is empty and `findings` tells why where sd-scripts cannot read it. `lines` says where
    each key and table stands, from 1.
    """

    path: Path
    tables: dict[str, Any]
    findings: list[Finding]
    lines: dict[Place, int] = field(default_factory=dict)
    content: object = None

    def line_of(self, place: Place) -> int | None:
        """The line of a key, or of the nearest table around it."""
        while place:
            if place in self.lines:
                return self.lines[place]
            place = place[:-1]
        return None


def read_user_toml(path: Path, shown: str) -> UserToml:
    """Reads a file. `shown` is its name in findings.

    Raises:
        OSError: it is not there, or may not be read.
    """
    raw = path.read_bytes()
    text, findings = _decode(raw, shown)
    if text is None:
        return UserToml(path, {}, findings)
    if (content := _json(text)) is not None:
        return UserToml(path, {}, findings, content=content)
    if text.startswith("\ufeff"):
        findings += [_byte_order_mark(text, shown)]
        text = text[1:]
    tables, complaint = _parse(text)
    if tables is None:
        findings.append(_explain(text, complaint, shown))
        return UserToml(path, {}, findings)
    lines = key_lines(text)
    return UserToml(path, tables, findings + _escaped(tables, lines, shown), lines)


def key_lines(text: str) -> dict[Place, int]:
    """Where each table and key stands. Keys of inline tables stand where their table does."""
    found: dict[Place, int] = {}
    table: Place = ()
    counts: dict[Place, int] = {}
    skip = _Skipper()
    for number, line in enumerate(text.splitlines(), 1):
        if skip.within(line):
            continue
        if header := _HEADER.match(line):
            names = [part.strip().strip("\"'") for part in header[2].split(".")]
            table = _table_place(names, counts, doubled=header[1] == "[[")
            found.setdefault(table, number)
        elif key := _KEY.match(line):
            dotted = key[3].split(".") if key[3] else [key[1] or key[2]]
            found.setdefault((*table, *dotted), number)
            skip.open(key[4])
    return found


class _Skipper:
    """Passes over the later lines of multi-line strings and arrays, which may look like keys."""

    def __init__(self) -> None:
        self._until = ""
        self._depth = 0

    def open(self, value: str) -> None:
        """Looks at what stands behind an equals sign."""
        for quote in ('"""', "'''"):
            if value.startswith(quote) and quote not in value[3:]:
                self._until = quote
                return
        self._depth = _depth(value)

    def within(self, line: str) -> bool:
        """Whether a line belongs to a value that began above it."""
        if self._until:
            if self._until in line:
                self._until = ""
            return True
        if self._depth > 0:
            self._depth += _depth(line)
            return True
        return False


def _depth(text: str) -> int:
    bare = re.sub(r'"(\\.|[^"\\])*"|\'[^\']*\'|#.*', "", text)
    return bare.count("[") - bare.count("]")


def _table_place(names: list[str], counts: dict[Place, int], *, doubled: bool) -> Place:
    """Where a header leads: an array's newest table, or a new one of it."""
    place: Place = ()
    for index, name in enumerate(names):
        place = (*place, name)
        if index == len(names) - 1 and doubled:
            counts[place] = counts.get(place, -1) + 1
        if place in counts:
            place = (*place, counts[place])
    return place


def _decode(raw: bytes, shown: str) -> tuple[str | None, list[Finding]]:
    for mark, name in _BOMS[:2]:
        if raw.startswith(mark):
            text = f"it is {name}, as Windows PowerShell's > writes it"
            return None, [
                Finding(shown, (), "wrong", text, "sd-scripts stops with UnicodeDecodeError", "save it as UTF-8", 1)
            ]
    try:
        return raw.decode("utf-8"), []
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        column = error.start - raw.rfind(b"\n", 0, error.start)
        text = f"byte {raw[error.start]:#04x} at column {column} is no UTF-8"
        return None, [
            Finding(shown, (), "wrong", text, "sd-scripts stops with UnicodeDecodeError", "save it as UTF-8", line)
        ]


def _json(text: str) -> object:
    """The content of a file that is JSON and not TOML; None where it is not."""
    if not text.lstrip("\ufeff \t\r\n").startswith("{"):
        return None
    try:
        return json.loads(text.lstrip("\ufeff"))
    except ValueError:
        return None


def _byte_order_mark(text: str, shown: str) -> Finding:
    first = text[1:].split("\n", 1)[0].strip()
    fix = 'save it as UTF-8 without a byte-order mark; in Windows\' Notepad that is "UTF-8", not "UTF-8 with BOM"'
    what = "it begins with a byte-order mark, an invisible character that editors on Windows write"
    if key := _KEY.match(first):
        name = key[1] or key[2] or key[3]
        effect = f'the first key is not "{name}" to sd-scripts but another one: it is ignored without a word'
    else:
        effect = f'sd-scripts cannot read the file: it stops at the first character, in front of "{first[:20]}"'
    return Finding(shown, (), "wrong", what, effect, fix, 1)


def _parse(text: str) -> tuple[dict[str, Any] | None, str]:
    """What the package that sd-scripts uses makes of it; or None and its complaint."""
    import toml

    try:
        return toml.loads(text), ""
    except (
        toml.TomlDecodeError,
        IndexError,
        ValueError,
        TypeError,
        KeyError,
    ) as error:  # it raises what it stumbles on
        return None, str(error)


def _explain(text: str, complaint: str, shown: str) -> Finding:
    """Why it cannot be read: line and column by the stricter parser, the cause by what stands there."""
    line, column = _position(text, complaint)
    lines = text.splitlines() or [""]
    there = lines[min(line, len(lines)) - 1]
    told, fix = find_cause(there, complaint, text)
    where = f" at column {column}" if column else ""
    return Finding(shown, (), "wrong", f"cannot be read{where}: {told}", "sd-scripts stops", fix, line)


def _position(text: str, complaint: str) -> tuple[int, int]:
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        if match := _POSITION.search(str(error)):
            return int(match[1]), int(match[2])
        return text.count("\n") + 1, 0
    match = _POSITION.search(complaint)
    return (int(match[3]), 0) if match and match[3] else (1, 0)


def _escaped(tables: dict[str, Any], lines: dict[Place, int], shown: str) -> list[Finding]:
    """Values in which a backslash of a Windows path was silently read as a tab, a newline and the like."""
    found = []
    for place, value in _leaves(tables):
        if not isinstance(value, str) or not any(char in value for char in _ESCAPES):
            continue
        names = [part for part in place if isinstance(part, str)]
        if _PATH_KEY.search(names[-1]) or value[1:2] == ":":
            told = "".join(_ESCAPES.get(char, char) for char in value)
            text = (
                f'{names[-1]} = "{told}" has a control character in it: the backslash in double quotes begins an escape'
            )
            fix = f"single quotes: '{told}'"
            found.append(
                Finding(shown, place, "wrong", text, "the path that is meant is another one", fix, lines.get(place))
            )
    return found


def _leaves(value: object, place: Place = ()) -> list[tuple[Place, object]]:
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in _leaves(item, (*place, key))]
    if isinstance(value, list):
        return [leaf for index, item in enumerate(value) for leaf in _leaves(item, (*place, index))]
    return [(place, value)]
