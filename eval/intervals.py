"""How sure is a number? 95 % intervals: prompts are resampled, not images, as images of one prompt are alike.

Means and what follows from means: from 8 prompts on cluster bootstrap, prompts drawn with replacement with all their
seeds, 10,000 draws from a fixed seed, percentiles widened for few prompts (Hesterberg 2015, arXiv 1411.5279, section
4.2: a bootstrap of n draws has a deviation too small by √((n-1)/n), and normal tails). Distances between sets:
delete-one jackknife, since a draw with replacement puts k(x, x) where the estimator wants two different images; in our
simulation the bootstrap of a kernel distance held the true value 1 time in 100, the jackknife 97.

References are held fixed in a bootstrap: the intervals are those of another set of prompts, not of other references.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from eval.metric import Interval

DRAWS = 10_000
SEED = 20_261
_TAIL = 0.025
# A denominator that is not positive in more draws than this gives a ratio without bounds (Fieller 1954).
_LOST_DRAWS = 0.01
_FEWEST_DRAWN = 8
_NOTHING = 1e-24  # of the squared value: rounding
_NO_BOUNDS = "no bounds, since what it is divided by can hardly be told from 0"

Statistic = Callable[[np.ndarray], np.ndarray]
"""From means [..., K] to a number each [...]."""


def bootstrap_prompts(columns: np.ndarray, prompts: np.ndarray, statistic: Statistic | None = None) -> Interval:
    """The interval of `statistic` of the columns' means; of the mean itself where none is given.

    `columns` [N] or [N, K] hold a row an image; `prompts` int [N]. None where there is a single prompt, or where the
    statistic is not finite in more than a hundredth of the draws. Of fewer than 8 prompts a bootstrap says too little
    (of 4 their whole range holds the true mean 7 times in 8): there the jackknife over prompts, with Student's t.
    """
    table = columns.reshape(len(columns), -1).astype(np.float64)
    of_means = statistic or (lambda means: means[..., 0])
    sums, counts = per_prompt(table, prompts)
    many = len(counts)
    if many < 2:
        return Interval.none("a single prompt")
    if many < _FEWEST_DRAWN:
        left = of_means((sums.sum(axis=0) - sums) / (counts.sum() - counts)[:, None])
        return jackknife(float(of_means(table.mean(axis=0)[None])[0]), [left], f"{many} prompts")
    drawn = _draws(many)
    values = of_means((drawn @ sums) / (drawn @ counts)[:, None])
    finite = values[np.isfinite(values)]
    if len(finite) < (1 - _LOST_DRAWS) * DRAWS:
        return Interval.none(_NO_BOUNDS)
    tail = _widened_tail(many)
    low, high = np.quantile(finite, [tail, 1 - tail])
    return Interval(float(low), float(high), f"bootstrap over {many} prompts")


def ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """The quotient, NaN where the bottom is not positive: there the share that it is of says nothing."""
    some = bottom > 0
    return np.where(some, top / np.where(some, bottom, 1), np.nan)


def bootstrap_share(hits: np.ndarray, prompts: np.ndarray) -> Interval:
    """The interval of a share. Where all images are alike, resampling shows nothing: then Clopper and Pearson's exact
    interval, with prompts counted, not images.
    """
    from scipy.stats import beta

    many = len(np.unique(prompts))
    if hits.all():
        return Interval(float(beta.ppf(_TAIL, many, 1)), 1.0, f"Clopper-Pearson over {many} prompts")
    if not hits.any():
        return Interval(0.0, float(beta.ppf(1 - _TAIL, 1, many)), f"Clopper-Pearson over {many} prompts")
    return bootstrap_prompts(hits.astype(np.float64), prompts).within(0.0, 1.0)


def jackknife(value: float, samples: Sequence[np.ndarray], what: str) -> Interval:
    """The interval of `value` from its leave-one-out estimates, an array for each sample that was left out of in turn:

        se² = Σ over samples of (n − 1)/n · Σ (jᵢ − mean j)²

    by Student's t with the smallest n − 1. None where a sample has a single member, where an estimate is not finite, and
    where all are equal: then nothing is known of how it varies.
    """
    from scipy.stats import t

    sizes = [len(sample) for sample in samples]
    if min(sizes) < 2:
        return Interval.none("too few prompts or references to leave one out")
    if not all(np.isfinite(sample).all() for sample in samples):
        return Interval.none(_NO_BOUNDS)
    squared = sum((len(j) - 1) / len(j) * float(((j - j.mean()) ** 2).sum()) for j in samples)
    if squared <= _NOTHING * value * value:
        return Interval.none(f"the same without any one of {what}")
    half = float(t.ppf(1 - _TAIL, min(sizes) - 1)) * squared**0.5
    return Interval(value - half, value + half, f"jackknife over {what}")


def per_prompt(table: np.ndarray, prompts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums [P, K] of the rows of each prompt, and how many rows it has [P]."""
    _, place, counts = np.unique(prompts, return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), table.shape[1]))
    np.add.at(sums, place, table)
    return sums, counts


@lru_cache(maxsize=4)
def _draws(many: int) -> np.ndarray:
    """How often each of `many` prompts is drawn, float64 [DRAWS, many]: always the same, and half of a bootstrap's time."""
    drawn = np.random.default_rng(SEED).multinomial(many, np.full(many, 1 / many), size=DRAWS).astype(np.float64)
    drawn.setflags(write=False)
    return drawn


def _widened_tail(clusters: int) -> float:
    """Which quantile stands for 2.5 %: 1.3 % at 10 prompts, 2.2 % at 50."""
    from scipy.stats import norm, t

    return float(norm.cdf((clusters / (clusters - 1)) ** 0.5 * t.ppf(_TAIL, clusters - 1)))
