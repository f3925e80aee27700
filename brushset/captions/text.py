"""One caption is one line of UTF-8: how any text becomes that, and how the trigger comes to stand first in it.

The trigger is the first comma-separated part, because `keep_tokens = 1` keeps that part in front when captions are
shuffled; it stands there once, whatever the text had.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from brushset.errors import InputError
from brushset.files import shown


def with_trigger(text: str, trigger: str) -> str:
    """The caption with the trigger as its first comma-separated part and nowhere else; never empty."""
    parts = [" ".join(part.split()) for part in text.split(",")]
    parts = [part for part in parts if part and part.lower() != trigger.lower()]
    if parts:
        parts[0] = re.sub(rf"^{re.escape(trigger)}\s+", "", parts[0], flags=re.IGNORECASE)
    return ", ".join([trigger, *parts])


def without_trigger(text: str, trigger: str) -> str:
    """The caption's parts that are not the trigger."""
    return ", ".join(part.strip() for part in text.split(",") if part.strip() != trigger)


def as_one_line(text: str) -> str:
    """Lines joined by commas, spaces closed up, nothing that cannot be printed."""
    lines = [" ".join(line.split()).strip(" ,") for line in text.splitlines()]
    return "".join(char for char in ", ".join(filter(None, lines)) if char.isprintable())


def read_caption(path: Path) -> str:
    """A caption file as one line, without a byte-order mark and control characters.

    Raises:
        InputError: it is not UTF-8, or cannot be read.
    """
    try:
        return as_one_line(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{shown(path)}: not UTF-8 text; fix: save it as UTF-8") from error
    except OSError as error:
        raise InputError(f"{shown(path)}: cannot be read: {error.strerror}; fix: its permissions") from error


def refuse_links_out(paths: Sequence[Path], folder: Path) -> None:
    """Raises an InputError naming every caption file that is a link out of `folder`: what it leads to is not the set's."""
    root = folder.resolve()
    findings = [
        f"{shown(path)}: a link out of the folder, to {shown(path.resolve())}; fix: copy the caption there"
        for path in paths
        if path.is_symlink() and not path.resolve().is_relative_to(root)
    ]
    if findings:
        raise InputError.of_many(findings)


def read_captions(paths: Sequence[Path]) -> list[str | None]:
    """The captions of the files that are there, None for the others.

    Raises:
        InputError: files that are no UTF-8 or cannot be read, a line each.
    """
    texts: list[str | None] = []
    findings = []
    for path in paths:
        try:
            texts.append(read_caption(path) if path.is_file() else None)
        except InputError as error:  # noqa: PERF203 - so that every bad file is named, not the first
            findings.append(str(error))
    if findings:
        raise InputError.of_many(findings)
    return texts


def file_content(text: str) -> bytes:
    """A caption as its file holds it."""
    return f"{text}\n".encode()
