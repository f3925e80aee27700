"""Refusals are collected, so that nobody mends a long command one run at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from brushset.errors import BrushsetError, UsageError


@contextlib.contextmanager
def collecting(findings: list[str]) -> Iterator[None]:
    """Notes what is refused inside, and goes on behind it."""
    try:
        yield
    except BrushsetError as error:
        findings += str(error).splitlines()


def refuse(findings: list[str]) -> None:
    """Raises UsageError with all findings, each once, where there are any."""
    if findings:
        raise UsageError.of_many(list(dict.fromkeys(findings)))
