"""The report's part on mixes: what is advised with its picture, how much of each style is left, and what is taken for what."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from brushset.page.pictures import thumbnail
from brushset.page.template import sentence
from brushset.records import Cell, Estimate, EvalReport, Matrix, MixChoice

PICTURES = 3
_TITLES = {
    "confusion": ("Taken for which style", "Share of each row's images that a classifier of the references takes for each column."),
    "mix_retention": ("What is left of each style", "1: as much as of the style alone at weight 1; 0: as the base."),
    "mix_interference": (
        "What the others take from it",
        "Style similarity in the mix less that alone at the same weight: 0 is untouched, below 0 is lost.",
    ),
}  # fmt: skip
_DIVERGING = frozenset({"mix_interference"})
_ABSENT = "not in this mix"
_LEAST_SCALE = 0.02  # a matrix of smaller numbers is not coloured as if they were large


@dataclass(frozen=True)
class MatrixCell:
    """One entry; `tint` -1 to 1 is how strongly it is coloured, below 0 in the other colour; `blank` where there can be none."""

    estimate: Estimate
    tint: float
    blank: bool


@dataclass(frozen=True)
class MatrixTable:
    """A matrix as a table with coloured cells; `decimals` of its numbers."""

    title: str
    about: str
    extractor: str
    meaningful: bool
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[MatrixCell, ...]], ...]
    decimals: int


@dataclass(frozen=True)
class MixCard:
    """A recommended mix with some of its pictures and their prompts."""

    choice: MixChoice
    pictures: tuple[tuple[str, str], ...]


def mix_cards(evaluation: EvalReport, root: Path) -> list[MixCard]:
    """One a pair or triple."""
    return [mix_card(choice, evaluation, root) for choice in evaluation.mix_choices]


def mix_card(choice: MixChoice, evaluation: EvalReport, root: Path) -> MixCard:
    """With the pictures that the run's evaluation drew of it."""
    cells = {cell.name: cell for cell in (*evaluation.cells, *evaluation.more_cells)}
    return MixCard(choice, tuple(_pictures(cells.get(choice.chosen.cell), evaluation, root)))


def matrix_tables(matrices: Iterable[Matrix], *kinds: str) -> list[MatrixTable]:
    """Those whose names begin with one of the kinds; of several encoders the first that is there, so each kind once."""
    found: dict[str, MatrixTable] = {}
    for matrix in matrices:
        kind = next((kind for kind in kinds if matrix.name.startswith(kind)), None)
        if kind is not None and kind not in found and matrix.rows:
            title, about = _TITLES.get(kind, (matrix.name, ""))
            about = f"{about} {sentence(matrix.note)}".strip()
            found[kind] = matrix_table(matrix, title, about, diverging=kind in _DIVERGING)
    return [found[kind] for kind in kinds if kind in found]


def matrix_table(matrix: Matrix, title: str, about: str, *, diverging: bool = False) -> MatrixTable:
    """Coloured from 0 to its largest entry, or, where below 0 has a meaning of its own, to either side of 0."""
    values = [each.value for row in matrix.entries for each in row if each.value is not None]
    scale = max([_LEAST_SCALE, *map(abs, values)]) if diverging else max([1.0, *values])
    return MatrixTable(
        title=title,
        about=about or matrix.note,
        extractor=matrix.extractor,
        meaningful=matrix.meaningful,
        columns=matrix.columns,
        rows=tuple(
            (
                name,
                tuple(
                    MatrixCell(
                        each, _tint(each.value, scale), each.value is None and (name == column or _ABSENT in each.note)
                    )
                    for each, column in zip(row, matrix.columns, strict=True)
                ),
            )
            for name, row in zip(matrix.rows, matrix.entries, strict=True)
        ),
        decimals=3 if diverging else 2,
    )


def _tint(value: float | None, scale: float) -> float:
    return 0.0 if value is None else max(-1.0, min(1.0, value / scale))


def _pictures(cell: Cell | None, evaluation: EvalReport, root: Path) -> Sequence[tuple[str, str]]:
    """One seed of the first prompts."""
    if cell is None:
        return []
    return [
        (thumbnail(root / cell.images[number * len(evaluation.seeds)]), prompt)
        for number, prompt in enumerate(evaluation.prompts[:PICTURES])
    ]
