"""Of what came out: convert, evaluate, export, report."""

from __future__ import annotations

from pydantic import Field

from brushset.records.base import Record


class Adapter(Record):
    """The diffusers form, and the proof that it equals the file as trained."""

    path: str
    modules: int
    max_relative_error: float = Field(description="largest ‖ΔW − ΔW'‖ / ‖ΔW‖ over all modules")


class Score(Record):
    """One number of one grid cell; None where it was not measured, with the reason in `note`."""

    metric: str
    cell: str
    value: float | None
    n: int
    higher_is_better: bool
    extractor: str
    meaningful: bool = Field(description="false where any model that took part is made up")
    note: str = ""


class Cell(Record):
    """Images made with one mix of adapters over the whole grid of prompts × seeds."""

    name: str = Field(description='"base", "cartoon 0.8", "cartoon 0.5 + anime 0.5"')
    mix: dict[str, float]
    images: tuple[str, ...]


class EvalReport(Record):
    """The grid and its scores. eval/scores.json holds the same."""

    cells: tuple[Cell, ...]
    scores: tuple[Score, ...]
    grid: str
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    meaningful: bool
    notes: tuple[str, ...]


class Package(Record):
    """One UI's folder."""

    target: str
    folder: str
    files: tuple[str, ...]
    install: str = Field(description="where to drop it, one line")


class Exports(Record):
    """The packages made."""

    packages: tuple[Package, ...]
    trigger: str
    weight: float


class Report(Record):
    """The page."""

    path: str
    verdict: str
