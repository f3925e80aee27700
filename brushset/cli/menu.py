"""What `--help` lists: the commands in groups, by what people come for, each with its whole first sentence.

Typer carries its click under a private name, or takes the installed one, by its version; so neither is named here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from typer.core import TyperGroup

SECTIONS = {
    "From images to a LoRA, step by step": (
        "all",
        "audit",
        "preprocess",
        "caption",
        "configure",
        "train",
        "choose",
        "convert",
        "evaluate",
        "export",
        "report",
    ),
    "Images, and what styles do together": ("inference", "compare", "conflicts", "merge"),
    "Many runs": ("sweep", "queue", "status", "logs", "cancel", "resume", "clean", "run-one"),
    "LoRA files and packages": ("inspect", "resize", "metadata", "verify-export"),
    "Kohya's TOML files": ("validate", "import"),
    "This machine": ("doctor", "fetch-models"),
}
WIDTH = 110


class Menu(TyperGroup):
    """The group of all commands, listed in sections."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes a section each; whatever has no section stands last."""
        placed = {name for names in SECTIONS.values() for name in names}
        rest = [name for name in self.list_commands(ctx) if name not in placed]
        for title, names in {**SECTIONS, "Others": rest}.items():
            rows = list(self._rows(ctx, names))
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def _rows(self, ctx: Any, names: Iterable[str]) -> Iterable[tuple[str, str]]:
        for name in names:
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                yield name, (command.help or "").split("\n\n")[0]
