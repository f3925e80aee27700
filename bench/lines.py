"""What a bench finds, as lines of JSON: each is there as soon as it is measured, whatever becomes of the next."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def add_line(row: Mapping[str, Any], file: Path | None) -> None:
    """Adds a line to a file; to none where none was asked for."""
    if file is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(row) + "\n")


def tell(row: Mapping[str, Any], file: Path | None) -> None:
    """Prints it, too."""
    print(json.dumps(row), flush=True)
    add_line(row, file)
