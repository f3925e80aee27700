"""No description: every caption is the trigger alone. For smoke runs, and for sets whose images need no telling apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from brushset.protocols import Emit
from brushset.spec import CaptionSection


class TriggerOnlyCaptioner:
    """Says nothing about any image."""

    name = "trigger-only"

    def __init__(self, section: CaptionSection) -> None:  # noqa: ARG002 - the table's signature
        self.settings = ""

    def describe(self, images: Sequence[Path], emit: Emit) -> list[str]:  # noqa: ARG002 - the protocol's
        """An empty string an image."""
        return ["" for _ in images]
