"""Style similarity, and how much of the way from the base to the references an adapter goes.

    S(x) = mean over references r of cos(f(x), f(r))                    S(cell) = mean over its images
    ρ = (S(cell) − S(baseline)) / (S(references, each left out of its own) − S(baseline))

The mean of cosines, not the cosine of means (which is larger, as it divides by the lengths of the means). S: -1 to 1,
higher is better. ρ: 0 as the baseline, 1 as alike as the references are to each other; it can be held against another
encoder's. The baseline is the bare base, or the base with style words in its prompts, which is the one to beat: words
alone already make a watercolour. f is CLIP's image embedding, which holds content besides style, or CSD (Somepalli et
al. 2024, arXiv 2404.01292), trained to leave content out. Least sensible n: some 50 images, and 16 references.

References are the held-out images, where there are 4 or more: against images that were trained on, a copy of one of them
scores best of all. The note of every score says which they were.
"""

from __future__ import annotations

import numpy as np

from eval.intervals import bootstrap_prompts, jackknife, ratio
from eval.layout import FLOOR
from eval.metric import Measurement, NotMeasured
from eval.seen import Seen


def measure_style_similarity(seen: Seen, cell: str) -> Measurement:
    """The mean cosine of a cell's images to the references; of FLOOR, that of the references to each other."""
    if cell == FLOOR:
        references = seen.references()
        level = reference_level(references)
        interval = jackknife(level, [left_out_levels(references)], "references")
        return Measurement(level, len(references), interval, f"{seen.references_note}, each against the others")
    each = similarities(seen, cell)
    interval = bootstrap_prompts(each, seen.prompts).within(-1.0, 1.0)
    return Measurement(float(each.mean()), len(each), interval, seen.references_note)


def measure_retention(seen: Seen, cell: str) -> Measurement:
    """ρ with the bare base as baseline."""
    return _retention(seen, cell, seen.layout.base)


def measure_retention_over_words(seen: Seen, cell: str) -> Measurement:
    """ρ with the base with style words as baseline.

    Raises:
        NotMeasured: that cell was not sampled.
    """
    return _retention(seen, cell, seen.layout.words)


def similarities(seen: Seen, cell: str | None, style: str | None = None) -> np.ndarray:
    """S of each image of a cell to a style's references, float64 [N]."""
    return mean_cosines(seen.of(cell), seen.references(style))


def mean_cosines(rows: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Each row's mean cosine to the references: of unit vectors, the dot product with their mean."""
    return rows.astype(np.float64) @ references.astype(np.float64).mean(axis=0)


def reference_level(references: np.ndarray) -> float:
    """The mean cosine of different references: Σ over i ≠ j of cos / (n(n−1)).

    Raises:
        NotMeasured: fewer than two.
    """
    if len(references) < 2:
        raise NotMeasured(f"{len(references)} references; their likeness to each other wants 2")
    rows = references.astype(np.float64)
    total = rows.sum(axis=0)
    return float((total @ total - (rows * rows).sum()) / (len(rows) * (len(rows) - 1)))


def left_out_levels(references: np.ndarray) -> np.ndarray:
    """The reference level without each of them in turn, [n]; empty for fewer than three."""
    rows, n = references.astype(np.float64), len(references)
    if n < 3:
        return np.zeros(0)
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, 0)
    return np.asarray((cosines.sum() - 2 * cosines.sum(axis=0)) / ((n - 1) * (n - 2)))


def _retention(seen: Seen, cell: str, baseline: str | None) -> Measurement:
    level = reference_level(seen.references())
    columns = np.stack([similarities(seen, cell), similarities(seen, baseline)], axis=1)

    def kept(means: np.ndarray) -> np.ndarray:
        return ratio(means[..., 0] - means[..., 1], level - means[..., 1])

    value = float(kept(columns.mean(axis=0)))
    if np.isnan(value):
        raise NotMeasured(f"{baseline} is as alike to the references as they are to each other ({level:.3f})")
    interval = bootstrap_prompts(columns, seen.prompts, kept)
    note = f"{seen.references_note}, alike by {level:.3f}; 0 is {baseline}, by {columns[:, 1].mean():.3f}"
    return Measurement(value, len(columns), interval, note)
