"""The report's scores: the adapter against its yardsticks, and every number with its interval, folded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from brushset.page.metrics import (
    FAMILIES,
    FLOOR,
    RUN,
    Goal,
    Standing,
    decimals_of,
    family_of,
    goals,
    rank_of,
    second_opinion_of,
    title_of,
)
from brushset.records import Cell, EvalReport, Score

# Of cells that are not the adapter's own, or that stand in parts of their own.
_NOT_YARDSTICKS = ("mix_", "trigger_", "wrong_trigger", "style_auc", "monotonicity")


@dataclass(frozen=True)
class YardstickRow:
    """One metric: of the base, of the base with style words, of the adapter, of the references among themselves."""

    metric: str
    title: str
    decimals: int
    higher_is_better: bool | None
    base: Score | None
    words: Score | None
    adapter: Score
    floor: Score | None
    goal: Goal | None
    standing: Standing | None


@dataclass(frozen=True)
class ScoreRow:
    """One score under its metric's name."""

    title: str
    decimals: int
    score: Score


@dataclass(frozen=True)
class ScoreFamily:
    """All scores of one kind, and by what they were measured."""

    name: str
    rows: tuple[ScoreRow, ...]
    extractors: tuple[str, ...]


def yardsticks(evaluation: EvalReport, main: Cell | None, bounds: Mapping[str, float]) -> list[YardstickRow]:
    """A row a metric that the adapter has a score of, or the run as a whole; of style by CLIP only where CSD has none."""
    found = {(score.metric, score.cell): score for score in evaluation.scores}
    words = next((cell.name for cell in evaluation.cells if cell.role == "words"), "")
    aims = goals(bounds)
    trusted = {score.metric for score in evaluation.scores if score.value is not None}
    rows = []
    for metric in sorted({score.metric for score in evaluation.scores}, key=rank_of):
        own = found.get((metric, main.name if main else "")) or found.get((metric, RUN))
        if own is None or metric.startswith(_NOT_YARDSTICKS) or second_opinion_of(metric) in trusted:
            continue
        goal = aims.get(metric)
        rows.append(
            YardstickRow(
                metric=metric,
                title=title_of(metric),
                decimals=decimals_of(metric),
                higher_is_better=own.higher_is_better,
                base=found.get((metric, "base")),
                words=found.get((metric, words)),
                adapter=own,
                floor=found.get((metric, FLOOR)),
                goal=goal,
                standing=goal.standing(own) if goal else None,
            )
        )
    return rows


def score_families(evaluation: EvalReport) -> list[ScoreFamily]:
    """Every score, also those that could not be had."""
    families = []
    for name in (*FAMILIES, "Others"):
        scores = [score for score in evaluation.scores if family_of(score.metric) == name]
        if not scores:
            continue
        scores.sort(key=lambda score: rank_of(score.metric))
        rows = tuple(ScoreRow(title_of(score.metric), decimals_of(score.metric), score) for score in scores)
        extractors = dict.fromkeys(_named(score) for score in scores if score.value is not None)
        families.append(ScoreFamily(name, rows, tuple(extractors)))
    return families


def missing_lines(evaluation: EvalReport) -> list[str]:
    """What was not measured, a line a reason."""
    by_reason: dict[str, dict[str, list[str]]] = {}
    for score in evaluation.scores:
        if score.value is None:
            by_reason.setdefault(score.note, {}).setdefault(title_of(score.metric), []).append(score.cell)
    return [f"{_subjects(titles)}: {note}" for note, titles in by_reason.items()]


def _subjects(titles: Mapping[str, Sequence[str]]) -> str:
    """One metric with the cells it was not measured of, or several without."""
    if len(titles) > 1:
        return " · ".join(titles)
    ((title, cells),) = titles.items()
    return f"{title} of {cells[0]}{f' and {len(cells) - 1} more' if len(cells) > 1 else ''}"


def _named(score: Score) -> str:
    return f"{score.extractor} ({score.weights_sha256[:12]})" if score.weights_sha256 else score.extractor
