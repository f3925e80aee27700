"""What one look at a Kohya file says: where, how bad, what sd-scripts will do, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["wrong", "another script's", "harmless"]
Path = tuple[str | int, ...]  # where a value stands: ("datasets", 0, "subsets", 1, "num_repeats")
SEVERITIES: tuple[Severity, ...] = ("wrong", "another script's", "harmless")
_SHOWN = 60  # characters of a value in a message


@dataclass(frozen=True)
class Finding:
    """One thing about one key.

    `key` may be empty for what concerns a table or the file. `text` is what was found, with the value and what was
    expected; `effect` is what sd-scripts will do, `fix` what to write instead; the last two may be empty.
    """

    file: str
    path: Path
    severity: Severity
    text: str
    effect: str = ""
    fix: str = ""
    line: int | None = None

    @property
    def table(self) -> str:
        """The table as it is written: "[general]", "[[datasets.subsets]]"; empty at the top level."""
        names = [part for part in self.path[:-1] if isinstance(part, str)]
        if not names:
            return ""
        several = any(isinstance(part, int) for part in self.path)
        return f"[[{'.'.join(names)}]]" if several else f"[{'.'.join(names)}]"

    @property
    def message(self) -> str:
        """All of it on one line, without the place."""
        told = "; ".join(part for part in (self.text, self.effect, f"fix: {self.fix}" if self.fix else "") if part)
        return told.replace("?; ", "? ")


def nearest(key: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The known name that is most like `key`, or an empty string."""
    names = difflib.get_close_matches(key.lower(), list(known), n=1, cutoff=cutoff)
    return names[0] if names else ""


def did_you_mean(key: str, known: Iterable[str]) -> str:
    """`; did you mean "network_dim"?`, or an empty string."""
    name = nearest(key, known)
    return f'; did you mean "{name}"?' if name else ""


def said(key: str, value: object) -> str:
    """`key = value` as one would write it in TOML, not too long."""
    if isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, str):
        text = f'"{value}"'
    else:
        text = repr(value)
    return f"{key} = {text if len(text) <= _SHOWN else text[:_SHOWN] + '…'}"


def is_a(value: object, kind: str, *, strict: bool = False) -> bool:
    """Whether a TOML value has a type of flags.json. Strict is the dataset loader, to which 0 is no float."""
    if kind.startswith("pair"):
        return isinstance(value, list) and len(value) == 2 and all(is_a(item, "number") for item in value)
    if kind == "bool" or isinstance(value, bool):
        return kind == "bool" and isinstance(value, bool)
    if kind == "float":
        return isinstance(value, float if strict else (int, float))
    kinds: dict[str, type | tuple[type, ...]] = {"int": int, "str": str, "number": (int, float), "dict": dict}
    return isinstance(value, kinds[kind])


def flat_tables(tables: Mapping[str, Any]) -> list[tuple[Path, Any]]:
    """Every key of a training TOML with its place, as sd-scripts takes them: one level of tables is taken away."""
    found: list[tuple[Path, Any]] = []
    for name, value in tables.items():
        if isinstance(value, Mapping):
            found += [((name, key), item) for key, item in value.items()]
        else:
            found.append(((name,), value))
    return found
