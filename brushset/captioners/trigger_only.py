"""No description: every caption is the trigger alone. For smoke runs, and for sets whose images need no telling apart."""

from __future__ import annotations

from brushset.protocols import Describe, Emit
from brushset.spec import CaptionSection


class TriggerOnlyCaptioner:
    """Says nothing about any image."""

    name = "trigger-only"
    settings = ""

    def __init__(self, section: CaptionSection) -> None:
        self.batch_size = section.batch_size

    def weights(self) -> str:
        """None."""
        return ""

    def load(self, emit: Emit) -> Describe:  # noqa: ARG002 - the protocol's
        """An empty string an image."""
        return lambda subjects: ["" for _ in subjects]
