"""How two runs differ, and how sure that is: their images are paired at the same prompt and seed, and prompts resampled.

    difference = statistic(second run) − statistic(first run), both over the places that both runs have

Paired, since most of what varies from image to image is the prompt, which both share: the interval of the difference is
then far narrower than those of the two numbers. References and extractors are held fixed: they must be the same, or nothing
is paired. Where it is not, both numbers stand side by side without an interval, and the note says why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from brushset.records import Difference, Estimate, EvalReport, PlaceMeasure, PlaceValues, Score
from eval.intervals import bootstrap_prompts, ratio

FEWEST_PROMPTS = 2
_BASE = "base"
_NO_VALUES = "no number for each image is kept of this metric"


@dataclass(frozen=True)
class Side:
    """One of the two runs: what it is judged by, and the values of its images where they are kept."""

    report: EvalReport
    cell: str
    values: PlaceValues | None

    def score(self, metric: str) -> Score | None:
        """The score of the run's own cell, else the one of the whole run."""
        found = [score for score in self.report.scores if score.metric == metric]
        own = [score for score in found if score.cell == self.cell]
        return own[0] if own else found[0] if len(found) == 1 else None


@dataclass(frozen=True)
class _Paired:
    """How a metric follows from the values of places: of which measure, whether from the base's too, by which formula of
    the means [..., K] and the references' level.
    """

    measure: str
    with_base: bool
    formula: Callable[[np.ndarray, float], np.ndarray]


def _mean(means: np.ndarray, _: float) -> np.ndarray:
    return np.asarray(means[..., 0])


def _less_base(means: np.ndarray, _: float) -> np.ndarray:
    return np.asarray(means[..., 0] - means[..., 1])


def _by_base(means: np.ndarray, _: float) -> np.ndarray:
    return ratio(means[..., 0], means[..., 1])


def _retention(means: np.ndarray, level: float) -> np.ndarray:
    return ratio(means[..., 0] - means[..., 1], level - means[..., 1])


_PAIRED: Mapping[str, _Paired] = {
    "retention_csd": _Paired("style_similarity_csd", True, _retention),
    "retention_clip": _Paired("style_similarity", True, _retention),
    "style_similarity_csd": _Paired("style_similarity_csd", False, _mean),
    "style_similarity": _Paired("style_similarity", False, _mean),
    "clip_score_difference": _Paired("clip_score", True, _less_base),
    "clip_score": _Paired("clip_score", False, _mean),
    "memorisation_gap": _Paired("memorisation_gap", False, _mean),
    "lpips_ratio": _Paired("lpips", True, _by_base),
}
_WITHOUT_REFERENCES = frozenset({"clip_score", "lpips"})
# Of these the run has one number, or a cell of its own that the other run need not have.
_OTHERS = ("style_accuracy_csd", "vendi_ratio", "kd_dinov2", "fid", "kid", "cmmd", "copies", "loss_gap")


def find_differences(first: Side, second: Side) -> list[Difference]:
    """Every metric that either run has a number of."""
    return [
        found
        for metric in (*_PAIRED, *_OTHERS)
        if (found := _difference(metric, first, second)) and (found.first.value, found.second.value) != (None, None)
    ]


def _difference(metric: str, first: Side, second: Side) -> Difference | None:
    one, other = first.score(metric), second.score(metric)
    if one is None and other is None:
        return None
    known = one or other
    assert known is not None
    why_not = _why_not(metric, first, second)
    measured = not why_not and metric in _PAIRED
    estimate, prompts = (
        _paired(_PAIRED[metric], first, second) if measured else (_unpaired(one, other, why_not or _NO_VALUES), 0)
    )
    return Difference(
        metric=metric,
        first=_estimate(one),
        second=_estimate(other),
        difference=estimate,
        prompts=prompts,
        higher_is_better=known.higher_is_better,
        meaningful=all(score is None or score.value is None or score.meaningful for score in (one, other)),
    )


def _why_not(metric: str, first: Side, second: Side) -> str:
    """Why the two runs' images do not pair for this metric; empty where they do."""
    paired = _PAIRED.get(metric)
    if paired is None:
        return _NO_VALUES
    if first.values is None or second.values is None:
        return "eval/values.json is missing in one of the runs; fix: orchestrate.py evaluate"
    one, other = first.values.measures.get(paired.measure), second.values.measures.get(paired.measure)
    if one is None or other is None:
        return "not measured in one of the runs"
    if (one.extractor, one.weights_sha256) != (other.extractor, other.weights_sha256):
        return f"measured by different extractors: {one.extractor}, {other.extractor}"
    if paired.measure not in _WITHOUT_REFERENCES and not _same_references(first, second):
        return "held against different references"
    for side, measure in ((first, one), (second, other)):
        if missing := [cell for cell in _cells(paired, side) if cell not in measure.cells]:
            return f"no numbers of {missing[0]}"
    common = shared_places(first.values, second.values)
    prompts = {first.values.prompts[place] for place, _ in common}
    if len(prompts) < FEWEST_PROMPTS:
        return f"{len(prompts) or 'no'} prompt{'' if len(prompts) == 1 else 's'} with a seed that both runs have"
    return ""


def _same_references(first: Side, second: Side) -> bool:
    assert first.values is not None
    assert second.values is not None
    return first.values.references == second.values.references


def _cells(paired: _Paired, side: Side) -> Sequence[str]:
    return (side.cell, _BASE) if paired.with_base else (side.cell,)


def shared_places(first: PlaceValues, second: PlaceValues) -> list[tuple[int, int]]:
    """The places of the same prompt and seed in both, by their numbers in each."""
    known = {place: number for number, place in enumerate(zip(second.prompts, second.seeds, strict=True))}
    return [
        (number, known[place])
        for number, place in enumerate(zip(first.prompts, first.seeds, strict=True))
        if place in known
    ]


def _paired(paired: _Paired, first: Side, second: Side) -> tuple[Estimate, int]:
    assert first.values is not None
    assert second.values is not None
    common = shared_places(first.values, second.values)
    one, other = first.values.measures[paired.measure], second.values.measures[paired.measure]
    columns = np.concatenate(
        [
            _columns(one, _cells(paired, first), [place for place, _ in common]),
            _columns(other, _cells(paired, second), [place for _, place in common]),
        ],
        axis=1,
    )
    width = columns.shape[1] // 2

    def statistic(means: np.ndarray) -> np.ndarray:
        after = paired.formula(means[..., width:], other.level or 0.0)
        return np.asarray(after - paired.formula(means[..., :width], one.level or 0.0))

    names = [first.values.prompts[place] for place, _ in common]
    _, prompts = np.unique(names, return_inverse=True)
    value = float(statistic(columns.mean(axis=0)))
    if not np.isfinite(value):
        return Estimate(value=None, note="the base is as near to the references as they are to each other"), 0
    interval = bootstrap_prompts(columns, prompts, statistic)
    note = interval.method
    if len(common) < max(len(first.values.prompts), len(second.values.prompts)):
        note += f"; over the {len(common)} places alone that both have"
    return Estimate(value=value, low=interval.low, high=interval.high, note=note), len(set(names))


def _columns(measure: PlaceMeasure, cells: Sequence[str], places: Sequence[int]) -> np.ndarray:
    return np.stack([np.asarray(measure.cells[cell], np.float64)[list(places)] for cell in cells], axis=1)


def _estimate(score: Score | None) -> Estimate:
    if score is None:
        return Estimate(value=None, note="not measured")
    return Estimate(value=score.value, low=score.low, high=score.high, note=score.note)


def _unpaired(one: Score | None, other: Score | None, why: str) -> Estimate:
    if one is None or other is None or one.value is None or other.value is None:
        return Estimate(value=None, note="not measured in one of the runs")
    return Estimate(value=other.value - one.value, note=f"no paired interval: {why}")
