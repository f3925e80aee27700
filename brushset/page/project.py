"""The page of a whole project: every style's verdict, what styles do to one another, mixes, times; runs/report.html.

Links lead to the runs' own pages by relative paths, so that the folder of runs can be moved or copied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brushset.page.mixes import MatrixTable, MixCard, matrix_table, mix_card
from brushset.page.pictures import TILE_PX, main_cell, spread, thumbnail
from brushset.page.plots import BLUE, page_figure, to_svg
from brushset.page.template import render_page
from brushset.records import Audit, Choice, Estimate, EvalReport, Matrix, MixChoice, Prepared, Trained

if TYPE_CHECKING:
    from markupsafe import Markup

TEMPLATE = "project.html.j2"
_IMAGES = 4
_FEWEST_PAIRS = 3  # two points are on a line, whatever they are


@dataclass(frozen=True)
class StyleRun:
    """A style's newest run, as far as it came; `folder` relative to the page. `claims` is its report.json."""

    style: str
    folder: str
    root: Path
    claims: Mapping[str, Any] | None
    status: str
    audit: Audit | None
    prepared: Prepared | None
    trained: Trained | None
    choice: Choice | None
    evaluation: EvalReport | None
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Agreement:
    """A prediction of conflict against what was measured: a point a pair, and how well one ranks the other."""

    name: str
    meaning: str
    pairs: tuple[tuple[str, float, float], ...]
    rank_correlation: Estimate


@dataclass(frozen=True)
class Findings:
    """What the runs show together; `interference` is None where no two styles were mixed."""

    interference: Matrix | None
    agreements: tuple[Agreement, ...]


@dataclass(frozen=True)
class StyleRow:
    """One style on the page."""

    run: StyleRun
    tone: str
    headline: str
    numbers: tuple[tuple[str, Estimate, bool], ...]
    epoch: int | None
    weight: float | None
    trained_on: tuple[str, ...]
    generated: tuple[str, ...]


@dataclass(frozen=True)
class Board:
    """The mix advised for some styles, and what another of their runs advises where that differs."""

    card: MixCard
    told_by: str
    otherwise: tuple[str, ...]


@dataclass(frozen=True)
class _Advice:
    """The same before its pictures are drawn."""

    run: StyleRun
    choice: MixChoice
    otherwise: tuple[str, ...]


def render_project(runs: Sequence[StyleRun], findings: Findings) -> str:
    """The page's HTML."""
    rows = [_row(run) for run in runs]
    stages = list(dict.fromkeys(stage for run in runs for stage in run.seconds))
    return render_page(
        TEMPLATE,
        {
            "rows": rows,
            "machinery": [row.run.style for row in rows if row.tone == "machinery"],
            "interference": _interference(findings.interference),
            "agreements": [(each, plot_agreement(each)) for each in findings.agreements],
            "boards": mixing_board(runs),
            "stages": stages,
            "longest": max([1e-9, *(sum(run.seconds.values()) for run in runs)]),
        },
    )


def project_json(runs: Sequence[StyleRun], findings: Findings) -> dict[str, Any]:
    """The same for machines."""
    matrix = findings.interference
    return {
        "styles": [
            {
                "style": run.style,
                "folder": run.folder,
                "status": run.status,
                "seconds": dict(run.seconds),
                **{key: run.claims[key] if run.claims else None for key in ("meaningful", "verdict", "use", "numbers")},
            }
            for run in runs
        ],
        "interference": matrix.model_dump(mode="json") if matrix else None,
        "agreements": [
            {
                "name": each.name,
                "meaning": each.meaning,
                "pairs": [{"pair": pair, "predicted": x, "measured": y} for pair, x, y in each.pairs],
                "rank_correlation": each.rank_correlation.model_dump(mode="json"),
            }
            for each in findings.agreements
        ],
        "mixes": [{"told_by": each.run.style, **each.choice.model_dump(mode="json")} for each in _advised(runs)],
    }


def mixing_board(runs: Sequence[StyleRun]) -> list[Board]:
    """What is advised, with its pictures."""
    return [
        Board(mix_card(each.choice, each.run.evaluation, each.run.root), each.run.style, each.otherwise)
        for each in _advised(runs)
        if each.run.evaluation
    ]


def _advised(runs: Sequence[StyleRun]) -> list[_Advice]:
    """One mix for each set of styles: of several runs that measured it the one whose mix surely leaves most."""
    told: dict[frozenset[str], list[tuple[StyleRun, MixChoice]]] = {}
    for run in runs:
        for choice in run.evaluation.mix_choices if run.evaluation else ():
            told.setdefault(frozenset(choice.styles), []).append((run, choice))
    advised = []
    for _, found in sorted(told.items(), key=lambda item: (len(item[0]), sorted(item[0]))):
        run, choice = max(found, key=lambda item: _surely_left(item[1]))
        others = tuple(
            f"{other.style}'s run advises {each.chosen.cell}"
            for other, each in found
            if _ingredients(each) != _ingredients(choice)
        )
        advised.append(_Advice(run, choice, others))
    return advised


def plot_agreement(agreement: Agreement) -> Markup | str:
    """Predicted against measured; empty for so few pairs that any line fits them."""
    if len(agreement.pairs) < _FEWEST_PAIRS:
        return ""
    with page_figure(3.9, 2.8) as figure:
        axes = figure.subplots()
        for name, predicted, measured in agreement.pairs:
            axes.plot([predicted], [measured], color=BLUE, marker="o", markersize=7, linestyle="none")
            axes.annotate(name, (predicted, measured), xytext=(6, 5), textcoords="offset points", fontsize=8)
        axes.set_xlabel(f"predicted: {agreement.name}")
        axes.set_ylabel("lost of the style that lost most")
        axes.margins(0.35, 0.2)
        return to_svg(figure, f"Predicted and measured conflict, {agreement.name}", "small")


def _row(run: StyleRun) -> StyleRow:
    claims = run.claims or {}
    verdict, use = claims.get("verdict", {}), claims.get("use", {})
    numbers = tuple(
        (
            str(each["title"]),
            Estimate.model_validate({key: each[key] for key in ("value", "low", "high", "note")}),
            bool(each["meaningful"]),
        )
        for each in claims.get("numbers", ())
        if verdict.get("tone") != "machinery"
    )
    prepared = run.prepared.images if run.prepared else ()
    return StyleRow(
        run=run,
        tone=str(verdict.get("tone", "unscored")),
        headline=str(verdict.get("headline", f"No report yet: {run.status}")),
        numbers=numbers,
        epoch=use.get("epoch"),
        weight=use.get("weight"),
        trained_on=tuple(thumbnail(run.root / "images" / each.name, TILE_PX) for each in spread(prepared, _IMAGES)),
        generated=tuple(_generated(run, use.get("weight"))),
    )


def _generated(run: StyleRun, weight: float | None) -> list[str]:
    """What the adapter makes of the first prompts, one seed each."""
    evaluation = run.evaluation
    main = main_cell(evaluation, run.style, weight or 0.0) if evaluation else None
    if main is None or evaluation is None:
        return []
    first = range(0, len(main.images), max(1, len(evaluation.seeds)))
    return [thumbnail(run.root / main.images[number], TILE_PX) for number in first[:_IMAGES]]


def _interference(matrix: Matrix | None) -> MatrixTable | None:
    if matrix is None or not matrix.rows:
        return None
    about = (
        "How much of the row's style is left when it is mixed with the column's: 1 is as much as alone, 0 as the base."
    )
    return matrix_table(matrix, "What styles do to one another", about)


def _surely_left(choice: MixChoice) -> float:
    least = choice.chosen.least
    bound = least.low if least.low is not None else least.value
    return bound if bound is not None else float("-inf")


def _ingredients(choice: MixChoice) -> tuple[frozenset[tuple[str, float]], str]:
    return frozenset(choice.chosen.mix.items()), choice.chosen.method
