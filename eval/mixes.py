"""Mixes: what is left of each style when several adapters act at once.

    retention of k = (S_k(mix) − S_k(base)) / (S_k(k alone at weight 1) − S_k(base))       1: nothing is lost
    balance = smallest retention / largest retention                                       1: neither prevails
    interference on k = S_k(mix) − S_k(k alone at its weight in the mix)                    0: the other does not touch it
    monotonicity = Spearman's rank correlation of a style's weights with S_k               1: more weight, more style

S_k is the mean cosine to the references of style k (eval/style_similarity.py). S_k alone at a weight that was not sampled
is taken on the straight line between its neighbours, the base being weight 0. Interference and monotonicity are of
weighted sums alone: what Switch shows at a weight is not what the adapter does at it. Higher is better, of interference nearer to 0
from below. Least sensible n: some 50 images a cell. There is no ground truth of two styles at once: a mix that keeps both
may still be ugly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eval.intervals import Statistic, bootstrap_prompts, ratio
from eval.metric import Interval, Measurement, NotMeasured
from eval.seen import Seen
from eval.style_similarity import similarities

LEAST_WEIGHTS = 3


@dataclass(frozen=True)
class PerStyle:
    """One style's number in a mix, or why there is none."""

    value: float | None
    interval: Interval | None = None
    note: str = ""


def measure_mix_retention(seen: Seen, mix: str) -> Measurement:
    """The retention of the style of which least is left."""
    value, n, interval = _of_all(seen, mix, _smallest)
    return Measurement(value, n, interval, f"the least of {' and '.join(seen.layout.mixes[mix])}")


def measure_mix_balance(seen: Seen, mix: str) -> Measurement:
    """The least retention by the largest, 0 to 1 where all styles are there."""
    value, n, interval = _of_all(seen, mix, _balance)
    return Measurement(value, n, interval, "the least retention by the largest")


def least_difference(seen: Seen, mix: str, other: str) -> tuple[float, Interval]:
    """By how much more is left of the least style in a mix than in another of the same styles, both at the same places.

    Raises:
        NotMeasured: one of them has no retention.
    """
    half = 3 * len(seen.layout.mixes[mix])
    columns = np.concatenate([_all_columns(seen, mix), _all_columns(seen, other)], axis=1)

    def statistic(means: np.ndarray) -> np.ndarray:
        return _smallest(_retentions(means[..., :half])) - _smallest(_retentions(means[..., half:]))

    value = float(statistic(columns.mean(axis=0)))
    if np.isnan(value):
        raise NotMeasured("a style alone is no nearer to its references than the base")
    return value, bootstrap_prompts(columns, seen.prompts, statistic)


def measure_mix_interference(seen: Seen, mix: str) -> Measurement:
    """The worst interference on any of the styles, in cosines."""
    columns = np.stack([interference_rows(seen, mix, style) for style in seen.layout.mixes[mix]], axis=1)
    worst = columns.mean(axis=0).min()
    interval = bootstrap_prompts(columns, seen.prompts, lambda means: means.min(axis=-1))
    return Measurement(float(worst), len(columns), interval, "of the style that loses most; cosines")


def measure_monotonicity(seen: Seen, _: str) -> Measurement:
    """Over the adapter's own weights, alone."""
    weights = seen.layout.alone.get(seen.layout.style, {})
    return _monotonicity(seen, list(weights), list(weights.values()), seen.layout.style)


def measure_mix_monotonicity(seen: Seen, pair: str) -> Measurement:
    """Over the mixes with one other style; the less monotone of the two styles."""
    partner = pair.removeprefix(f"{seen.layout.style} + ")
    mixes = seen.layout.pair(partner)
    both = [
        _monotonicity(seen, [mixes[name][style] for name in mixes], list(mixes), style)
        for style in (seen.layout.style, partner)
    ]
    return min(both, key=lambda found: found.value)


def style_retention(seen: Seen, mix: str, style: str) -> PerStyle:
    """One style's retention in a mix, for the interference matrix."""
    try:
        columns = _retention_columns(seen, mix, style)
        value = float(_retention(columns.mean(axis=0)))
    except NotMeasured as error:
        return PerStyle(None, note=str(error))
    if np.isnan(value):
        return PerStyle(None, note=f"{style} alone is no nearer to its references than the base")
    return PerStyle(value, bootstrap_prompts(columns, seen.prompts, _retention))


def style_interference(seen: Seen, mix: str, style: str) -> PerStyle:
    """The interference on one style in a mix, for the interference matrix."""
    try:
        each = interference_rows(seen, mix, style)
    except NotMeasured as error:
        return PerStyle(None, note=str(error))
    return PerStyle(float(each.mean()), bootstrap_prompts(each, seen.prompts))


def interference_rows(seen: Seen, mix: str, style: str) -> np.ndarray:
    """S_k(mix) − S_k(alone at the same weight) of each place."""
    if mix in seen.layout.methods:
        raise NotMeasured(f"{seen.layout.methods[mix]}: its weights are not those of a sum")
    weight = seen.layout.mixes[mix][style]
    known = {0.0: seen.layout.base, **seen.layout.alone.get(style, {})}
    if weight > max(known):
        raise NotMeasured(f"no cell of {style} alone at weight {weight:g} or above")
    above = min(value for value in known if value >= weight)
    below = max(value for value in known if value <= weight)
    part = 0.0 if above == below else (weight - below) / (above - below)
    alone = (1 - part) * similarities(seen, known[below], style) + part * similarities(seen, known[above], style)
    return similarities(seen, mix, style) - alone


def _of_all(seen: Seen, mix: str, combine: Statistic) -> tuple[float, int, Interval]:
    columns = _all_columns(seen, mix)

    def statistic(means: np.ndarray) -> np.ndarray:
        return combine(_retentions(means))

    value = float(statistic(columns.mean(axis=0)))
    if np.isnan(value):
        raise NotMeasured("a style alone is no nearer to its references than the base, or none is left in the mix")
    return value, len(columns), bootstrap_prompts(columns, seen.prompts, statistic)


def _all_columns(seen: Seen, mix: str) -> np.ndarray:
    """Three columns a style, of which `_retentions` makes one number each."""
    return np.concatenate([_retention_columns(seen, mix, style) for style in seen.layout.mixes[mix]], axis=1)


def _retentions(means: np.ndarray) -> np.ndarray:
    parts = [_retention(means[..., start : start + 3]) for start in range(0, means.shape[-1], 3)]
    return np.stack(parts, axis=-1)


def _retention_columns(seen: Seen, mix: str, style: str) -> np.ndarray:
    alone = seen.layout.alone.get(style, {}).get(1.0)
    if alone is None:
        raise NotMeasured(f"no cell of {style} alone at weight 1")
    return np.stack([similarities(seen, cell, style) for cell in (mix, seen.layout.base, alone)], axis=1)


def _retention(means: np.ndarray) -> np.ndarray:
    return ratio(means[..., 0] - means[..., 1], means[..., 2] - means[..., 1])


def _smallest(retentions: np.ndarray) -> np.ndarray:
    return np.asarray(retentions.min(axis=-1))


def _balance(retentions: np.ndarray) -> np.ndarray:
    return ratio(retentions.min(axis=-1), retentions.max(axis=-1))


def _monotonicity(seen: Seen, weights: list[float], cells: list[str], style: str) -> Measurement:
    if len(set(weights)) < LEAST_WEIGHTS:
        raise NotMeasured(f"{len(set(weights))} weights of {style}; a rank correlation wants {LEAST_WEIGHTS}")
    columns = np.stack([similarities(seen, cell, style) for cell in cells], axis=1)

    def spearman(means: np.ndarray) -> np.ndarray:
        return rank_correlation(np.asarray(weights), means)

    value = float(spearman(columns.mean(axis=0)[None])[0])
    interval = bootstrap_prompts(columns, seen.prompts, spearman).within(-1.0, 1.0)
    note = f"{style} at {', '.join(f'{weight:g}' for weight in weights)}"
    return Measurement(value, len(columns), interval, note)


def rank_correlation(weights: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Spearman's correlation of `weights` [K] with each row of [B, K]; ties share their ranks."""
    from scipy.stats import rankdata

    own, others = rankdata(weights), rankdata(rows, axis=1)
    own, others = own - own.mean(), others - others.mean(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(others @ own / np.sqrt((own @ own) * (others * others).sum(axis=1)))
