"""Why can a line of TOML not be read? The usual causes, in the order in which they are looked for."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

_CURLY = "“”„‟‘’‚‛"
_ESCAPE_WORDS = ("escape", "Unescaped", "hex")
_TWICE_WORDS = ("Duplicate", "already exists", "Cannot overwrite", "twice")


@dataclass(frozen=True)
class _Line:
    """A line that cannot be read, the parsers' complaint, and the whole text."""

    text: str
    complaint: str
    whole: str

    @property
    def key(self) -> str:
        return self.text.partition("=")[0].strip()

    @property
    def value(self) -> str:
        return self.text.partition("=")[2].strip()

    @property
    def single_quoted(self) -> str:
        """How a text in double quotes is written in single ones, where the value is such a text."""
        if not self.value.startswith('"'):
            return "single quotes"
        inner = self.value.partition("#")[0].strip().strip('"')
        return f"single quotes: {self.key} = '{inner}'"


@dataclass(frozen=True)
class _Cause:
    holds: Callable[[_Line], object]
    told: Callable[[_Line], str]
    fix: Callable[[_Line], str]


def _cause(holds: Callable[[_Line], object], told: str, fix: str) -> _Cause:
    """A cause whose texts may name `key` and `value` in braces."""

    def fill(text: str) -> Callable[[_Line], str]:
        return lambda line: text.format(key=line.key, value=line.value, lower=line.value.lower(), text=line.text)

    return _Cause(holds, fill(told), fill(fix))


def _says(line: _Line, words: tuple[str, ...]) -> bool:
    return any(word in line.complaint for word in words)


_CAUSES = (
    _cause(
        lambda line: any(char in line.text for char in _CURLY), "curly quotes, as word processors write them", 'straight ones: "'
    ),
    _Cause(
        lambda line: re.search(r'"[^"]*\\[^"]*"', line.value) and _says(line, _ESCAPE_WORDS),
        lambda _: "a backslash in double quotes begins an escape, which this is none of",
        lambda line: f"{line.single_quoted}, or forward slashes",
    ),
    _cause(
        lambda line: line.text.startswith(("{", "}")) or re.match(r'^"[^"]+"\s*:', line.text),
        "this looks like JSON, and is none that can be read", 'key = value, a line each: sample = "text"',
    ),
    _cause(lambda line: line.text.startswith("//"), "// begins no comment", "#"),
    _cause(
        lambda line: re.match(r"^[\w.\-]+\s*:(\s|$)", line.text) or line.text == "---",
        "a colon: this is YAML, as ai-toolkit and others use it", "key = value",
    ),
    _cause(lambda line: line.value in ("True", "False"), "{value} is written in lower case", "{key} = {lower}"),
    _cause(lambda line: line.value in ("None", "null", "nil"), "TOML has no {value}", "leave {key} out"),
    _Cause(
        lambda line: _says(line, _TWICE_WORDS),
        lambda line: f"{line.text.partition('#')[0].strip()} stands here a second time",
        lambda _: "leave one of them out",
    ),
    _cause(lambda line: "=" not in line.whole, "there is no key = value in it", "TOML: key = value, a line each"),
    _cause(
        lambda line: "mpty" in line.complaint and not line.value, "nothing stands behind the equals sign of {key}", "{key} = …"
    ),
    _cause(lambda line: not line.value and line.key, '"{key}" is no key = value', "{key} = …"),
    _cause(
        lambda line: "homogeneous" in line.complaint, "an array mixes types, which the parser of sd-scripts refuses",
        "all numbers with a point, or all without",
    ),
    _cause(
        lambda line: line.value.startswith(("'", '"')) and line.value.count(line.value[0]) % 2, "a quote is not closed",
        "close it: {value} …",
    ),
    _cause(lambda line: line.value.startswith("."), "a number begins with a digit", "{key} = 0{value}"),
    _Cause(
        lambda line: line.value.endswith(","), lambda _: "a comma ends the line",
        lambda line: f"{line.key} = {line.value.rstrip(',')}",
    ),
    _Cause(
        lambda line: line.value.endswith("%"), lambda _: "a share is written as a number",
        lambda line: f"{line.key} = {line.value.rstrip('%')}e-2",
    ),
    _cause(lambda line: re.match(r"^[A-Za-z/~][^\"']*$", line.value), "text stands in quotes", '{key} = "{value}"'),
)  # fmt: skip


def find_cause(line: str, complaint: str, whole: str) -> tuple[str, str]:
    """What is wrong with a line, and what to write; the parser's own words where it is nothing usual."""
    there = _Line(line.strip(), complaint, whole)
    for cause in _CAUSES:
        if cause.holds(there):
            return cause.told(there), cause.fix(there)
    return complaint.partition(" (line")[0] or "the parser refuses it", ""
