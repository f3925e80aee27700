"""Memorisation: are generated images nearer to what was trained on than to what was held out?

    d(x) = expected largest cosine to `size` training images drawn at random     h(x) = the same to held-out images
    gap = mean over x of (d(x) − h(x))                                          size = the smaller of the two sets

A larger set has a nearer neighbour by chance alone, so both are drawn down to one size; the expectation over all draws is
computed, not simulated: of sorted cosines, the k-th largest is the largest drawn with probability C(T−k, size−1)/C(T, size).
About 0 is right; an interval above 0 says that images are remembered. Lower is better. Carlini et al. 2023 (arXiv 2301.13188)
and Somepalli et al. 2023 (arXiv 2212.03860) look for copies the same way, by nearest neighbours.

A copy, by DINOv2: nearer to a training image than 99 % of the training images are to their nearest neighbour. Not the 99th
percentile of all pairs, which the nearest of a hundred images passes by chance; near-duplicates in the set, by dHash, are
not counted as neighbours, or they would set the threshold. By dHash: at most 6 of 64 bits differ. Both
miss copied parts of an image. Least sensible n: 16 held-out images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eval.intervals import bootstrap_prompts, bootstrap_share
from eval.layout import LEAST_HELD_OUT
from eval.metric import Measurement, NotMeasured
from eval.seen import Seen

COPY_PERCENTILE = 99.0
COPY_BITS = 6
_LEAST_TRAINED = 8


@dataclass(frozen=True)
class Nearest:
    """A generated image and the training image nearest to it, by row."""

    place: int
    trained: int
    cosine: float


def measure_gap(seen: Seen, cell: str) -> Measurement:
    """The gap of a cell, in cosines.

    Raises:
        NotMeasured: fewer than 4 held-out images.
    """
    each = gap_rows(seen, cell)
    size = min(len(seen.trained), len(seen.held_out))
    note = f"{len(seen.trained)} trained and {len(seen.held_out)} held-out images, both drawn down to {size}"
    return Measurement(float(each.mean()), len(each), bootstrap_prompts(each, seen.prompts), note)


def gap_rows(seen: Seen, cell: str) -> np.ndarray:
    """The gap of each image of a cell, float64 [N]. Raises as `measure_gap`."""
    rows = seen.of(cell)
    if len(seen.held_out) < LEAST_HELD_OUT:
        few = f"{len(seen.held_out)} held-out images, {LEAST_HELD_OUT} are wanted"
        raise NotMeasured(f"{few}; set [dataset] holdout, or holdout_from lower")
    size = min(len(seen.trained), len(seen.held_out))
    near = expected_largest(cosines(rows, seen.trained), size)
    return np.asarray(near - expected_largest(cosines(rows, seen.held_out), size))


def measure_copies(seen: Seen, cell: str) -> Measurement:
    """The share of a cell's images that are copies, by likeness."""
    threshold = copy_threshold(seen)
    hits = cosines(seen.of(cell), seen.trained).max(axis=1) > threshold
    note = f"cosine above {threshold:.3f}, the 99th percentile of training images to their nearest"
    return Measurement(float(hits.mean()), len(hits), bootstrap_share(hits, seen.prompts), note)


def measure_near_copies(seen: Seen, cell: str) -> Measurement:
    """The share of a cell's images of which the dHash is that of a training image, but for 6 bits."""
    hits = bits_apart(seen.of(cell), seen.trained).min(axis=1) <= COPY_BITS
    note = f"at most {COPY_BITS} of 64 bits differ from a training image"
    return Measurement(float(hits.mean()), len(hits), bootstrap_share(hits, seen.prompts), note)


def nearest_trained(seen: Seen, cell: str, most: int) -> list[Nearest]:
    """The images of a cell that are most like a training image, with it, the likest first."""
    found = cosines(seen.of(cell), seen.trained)
    if not found.size:
        return []
    order = np.argsort(-found.max(axis=1), kind="stable")[:most]
    return [Nearest(int(place), int(found[place].argmax()), float(found[place].max())) for place in order]


def copy_threshold(seen: Seen) -> float:
    """The cosine above which an image is a copy.

    Raises:
        NotMeasured: too few training images to say what is usual among them.
    """
    if len(seen.trained) < _LEAST_TRAINED:
        raise NotMeasured(f"{len(seen.trained)} training images; what is usual among them wants {_LEAST_TRAINED}")
    among = cosines(seen.trained, seen.trained)
    np.fill_diagonal(among, -np.inf)
    if seen.twins is not None:
        among[seen.twins] = -np.inf
    nearest = among.max(axis=1)
    nearest = nearest[np.isfinite(nearest)]
    if not len(nearest):
        raise NotMeasured("all training images are near-duplicates of one another")
    return float(np.percentile(nearest, COPY_PERCENTILE))


def expected_largest(values: np.ndarray, size: int) -> np.ndarray:
    """Of each row of [N, T], the expected largest of `size` values drawn without replacement; float64 [N]."""
    from scipy.special import gammaln

    total = values.shape[1]
    k = np.arange(1, total - size + 2)

    def log_choose(n: np.ndarray, r: int) -> np.ndarray:
        return np.asarray(gammaln(n + 1) - gammaln(r + 1) - gammaln(n - r + 1))

    chance = np.exp(log_choose(total - k, size - 1) - log_choose(np.array(total), size))
    return np.asarray(-np.sort(-values, axis=1)[:, : len(k)] @ chance)


def cosines(rows: np.ndarray, references: np.ndarray) -> np.ndarray:
    """[N, R] of unit vectors."""
    return rows.astype(np.float64) @ references.astype(np.float64).T


def bits_apart(hashes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Hamming distances [N, R] of hashes given as rows of 0 and 1.

    Raises:
        NotMeasured: nothing to compare with.
    """
    if not len(others):
        raise NotMeasured("no training images")
    return np.asarray((hashes[:, None, :] != others[None]).sum(axis=2))
