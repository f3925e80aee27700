"""Diversity: do an adapter's images differ from each other as much as the base's do?

    LPIPS: mean distance between images of different seeds of one prompt (Zhang et al. 2018, arXiv 1801.03924)
    Vendi: exp(−Σ λ ln λ), λ the eigenvalues of K/n, K the cosines of the images (Friedman & Dieng 2023, arXiv 2210.02410)

Both as a ratio to the base at the same prompts and seeds: 1 is as diverse, below 0.8 a warning, above 1 seldom a fault; so
higher is better up to 1. Vendi grows with n: only sets of one size are compared. A style that is plain by nature (flat
colour) lowers both without harm. Least sensible n: 2 seeds a prompt for LPIPS, some 50 images for Vendi.
"""

from __future__ import annotations

import math

import numpy as np

from eval.intervals import bootstrap_prompts, jackknife, ratio
from eval.metric import Measurement, NotMeasured
from eval.seen import Seen

_ROUNDING = 1e-12  # eigenvalues that are 0 come out as this, of either sign


def measure_lpips_ratio(seen: Seen, cell: str) -> Measurement:
    """Between seeds: `seen` holds one column, each image's mean distance to the other seeds of its prompt.

    Raises:
        NotMeasured: a single seed a prompt, or the base makes one image of all.
    """
    columns = np.concatenate([seen.of(cell), seen.of(seen.layout.base)], axis=1).astype(np.float64)
    if np.isnan(columns).any():
        raise NotMeasured("one seed a prompt; [evaluate] seeds wants 2 to tell images of one prompt apart")

    def by_the_base(means: np.ndarray) -> np.ndarray:
        return ratio(means[..., 0], means[..., 1])

    means = columns.mean(axis=0)
    if not means[1] > 0:
        raise NotMeasured("the base makes the same image of every seed")
    note = f"LPIPS {means[0]:.3f}, base {means[1]:.3f}"
    return Measurement(
        float(by_the_base(means)), len(columns), bootstrap_prompts(columns, seen.prompts, by_the_base), note
    )


def measure_vendi_ratio(seen: Seen, cell: str) -> Measurement:
    """Over the whole cell. Interval: jackknife over prompts of the logarithm; a resampled image twice is less diverse.

    Raises:
        NotMeasured: fewer than two images.
    """
    rows, base = seen.of(cell), seen.of(seen.layout.base)
    if len(rows) < 2:
        raise NotMeasured("one image")
    value, below = vendi_score(rows), vendi_score(base)
    kept = [seen.prompts != number for number in np.unique(seen.prompts)]
    own, others = _cosines(rows), _cosines(base)
    left = np.array([np.log(_vendi(own[keep][:, keep]) / _vendi(others[keep][:, keep])) for keep in kept if keep.any()])
    interval = jackknife(float(np.log(value / below)), [left], f"{len(kept)} prompts").mapped(math.exp)
    return Measurement(value / below, len(rows), interval, f"Vendi {value:.2f}, base {below:.2f}")


def vendi_score(rows: np.ndarray) -> float:
    """The effective number of different images among unit vectors [N, D], 1 to N."""
    return _vendi(_cosines(rows))


def _cosines(rows: np.ndarray) -> np.ndarray:
    vectors = rows.astype(np.float64)
    return np.asarray(vectors @ vectors.T)


def _vendi(kernel: np.ndarray) -> float:
    weights = np.linalg.eigvalsh(kernel / np.trace(kernel))
    weights = weights[weights > _ROUNDING]
    return float(np.exp(-(weights * np.log(weights)).sum()))
