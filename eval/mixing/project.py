"""Mixes over a whole project: what the runs of several styles found, in one matrix, and whether it was predicted.

A pair is measured in the run of each of its styles, by that run's references, prompts and partner as it was then. A row is
told by its own style's run where that has the pair, else by the other's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from brushset.lora.agreement import PairName, compare_prediction
from brushset.records import Estimate, EvalReport, Matrix, MixCandidate, MixChoice, Prediction

LEAST_PAIRS = 4
"""Of fewer pairs a rank correlation has no interval."""

PREDICTIONS: Mapping[str, tuple[str, Callable[[Prediction], float | None]]] = {
    "weights": (
        "how much the files' ΔW point against each other (−cosine)",
        lambda found: _minus(found.weights_cosine),
    ),
    "effects": (
        "how much their effects on the noise prediction point against each other (−cosine)",
        lambda found: _minus(found.effect_cosine),
    ),
    "additivity": ("share of their common effect that is not the sum of both", lambda found: found.additivity),
}
"""Predictions of conflict, each so that more is worse: what it says, and how it is read off the record."""


@dataclass(frozen=True)
class PredictedPair:
    """A pair of styles: the conflict predicted, and what its even mix lost of the style that lost most (1 − retention)."""

    styles: tuple[str, str]
    predicted: float
    measured: float


@dataclass(frozen=True)
class PredictionAgreement:
    """How well one prediction ranks the pairs: Spearman's ρ with its 95 % interval, +1 being right. None with a `note`
    where there are fewer than 4 pairs, or all on one side are equal.
    """

    name: str
    meaning: str
    pairs: tuple[PredictedPair, ...]
    rho: float | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""


def interference(reports: Mapping[str, EvalReport], *, even: bool = False) -> Matrix:
    """Style → its run's report, to styles × styles: how much the row's style keeps of itself, against it alone at weight 1,
    mixed with the column's as is advised, or as evenly as was tried where `even`: that compares pairs with one another.
    """
    styles = tuple(reports)
    entries = tuple(tuple(_entry(reports, row, column, even=even) for column in styles) for row in styles)
    choices = [
        choice for report in reports.values() for choice in report.mix_choices if set(choice.styles) <= set(styles)
    ]
    encoders = dict.fromkeys(choice.encoder for choice in choices if choice.encoder)
    return Matrix(
        name="interference_even" if even else "interference",
        rows=styles,
        columns=styles,
        entries=entries,
        extractor=", ".join(encoders),
        meaningful=bool(choices) and all(choice.meaningful for choice in choices),
        note="what is left of the row's style, mixed with the column's; 1: all that it has alone at weight 1",
    )


def agreements(reports: Mapping[str, EvalReport]) -> tuple[PredictionAgreement, ...]:
    """Each prediction against what even mixes lost. A pair that two runs measured has the mean of both."""
    measured = _measured(reports)
    return tuple(_agreement(name, reports, measured) for name in PREDICTIONS)


def most_even(choice: MixChoice) -> MixCandidate:
    """The first candidate of the weighted sum: [evaluate] pair_weights, which all pairs of a project share."""
    return next((each for each in choice.candidates if each.method == "weighted"), choice.chosen)


def kept_by(
    reports: Mapping[str, EvalReport], choice: MixChoice, candidate: MixCandidate
) -> Mapping[str, Estimate]:  # fmt: skip
    """Style → what is left of it: of the chosen mix on the prompts that it was not chosen by, of others on all prompts."""
    if candidate.cell == choice.chosen.cell and choice.reported is not None:
        return choice.reported.retention
    for matrix in reports[choice.styles[0]].matrices:
        if (
            matrix.name.startswith("mix_retention")
            and matrix.extractor == choice.encoder
            and candidate.cell in matrix.rows
        ):
            row = matrix.entries[matrix.rows.index(candidate.cell)]
            return {style: each for style, each in zip(matrix.columns, row, strict=True) if style in candidate.mix}
    return candidate.retention


def _agreement(name: str, reports: Mapping[str, EvalReport], measured: Mapping[PairName, float]) -> PredictionAgreement:
    meaning, read = PREDICTIONS[name]
    predicted = _means(
        (frozenset(choice.styles), read(choice.predicted)) for choice in _pairs(reports) if choice.predicted is not None
    )
    shared = sorted(predicted.keys() & measured.keys(), key=sorted)
    pairs = tuple(PredictedPair(_two(pair), predicted[pair], measured[pair]) for pair in shared)
    if len(pairs) < LEAST_PAIRS:
        many = f"{len(pairs)} pair{'' if len(pairs) == 1 else 's'}"
        note = f"not measured: {many} with both a prediction and a measurement; {LEAST_PAIRS} are the least"
        return PredictionAgreement(name, meaning, pairs, note=note)
    found = compare_prediction(predicted, measured)
    if math.isnan(found.rho):
        return PredictionAgreement(name, meaning, pairs, note="not measured: all pairs are equal on one side")
    note = "pairs that share a style are not independent: the interval is narrower than it should be"
    return PredictionAgreement(name, meaning, pairs, found.rho, found.low, found.high, note)


def _measured(reports: Mapping[str, EvalReport]) -> dict[PairName, float]:
    return _means((frozenset(choice.styles), _lost(reports, choice)) for choice in _pairs(reports) if choice.meaningful)


def _lost(reports: Mapping[str, EvalReport], choice: MixChoice) -> float | None:
    """What the even mix loses of the style that loses most."""
    kept = [each.value for each in kept_by(reports, choice, most_even(choice)).values()]
    known = [value for value in kept if value is not None]
    return 1 - min(known) if len(known) == len(kept) else None


def _entry(reports: Mapping[str, EvalReport], row: str, column: str, *, even: bool) -> Estimate:
    if row == column:
        return Estimate(value=None, note="a style is not mixed with itself")
    choice = _choice(reports, row, column)
    if choice is None:
        return Estimate(value=None, note=f"not measured: neither run of {row} and {column} mixes the two")
    candidate = most_even(choice) if even else choice.chosen
    found = kept_by(reports, choice, candidate)[row]
    notes = [found.note, candidate.cell, _stale(reports, choice, row, column)]
    return found.model_copy(update={"note": "; ".join(filter(None, notes))})


def _choice(reports: Mapping[str, EvalReport], row: str, column: str) -> MixChoice | None:
    for style in (row, column):
        for choice in reports[style].mix_choices:
            if set(choice.styles) == {row, column}:
                return choice
    return None


def _stale(reports: Mapping[str, EvalReport], choice: MixChoice, row: str, column: str) -> str:
    """Whether one of the two has another adapter by now, by what its own run says of it."""
    for style in (row, column):
        own = {each.adapters.get(style) for each in reports[style].mix_choices} - {None}
        if own and style in choice.adapters and choice.adapters[style] not in own:
            return f"with an adapter of {style} that its run no longer has"
    return ""


def _pairs(reports: Mapping[str, EvalReport]) -> list[MixChoice]:
    return [
        choice
        for report in reports.values()
        for choice in report.mix_choices
        if len(choice.styles) == 2 and set(choice.styles) <= set(reports)
    ]


def _means(values: Iterable[tuple[PairName, float | None]]) -> dict[PairName, float]:
    found: dict[PairName, list[float]] = {}
    for pair, value in values:
        if value is not None:
            found.setdefault(pair, []).append(value)
    return {pair: math.fsum(each) / len(each) for pair, each in found.items()}


def _two(pair: PairName) -> tuple[str, str]:
    first, second = sorted(pair)
    return first, second


def _minus(value: float | None) -> float | None:
    return None if value is None else -value
