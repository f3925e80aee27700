"""Can styles be told apart: by the encoder among references (AUC), and in what adapters make (confusion matrix)?

    AUC = P(cos of two references of one style > cos of two of different styles), ties counted half
    accuracy = share of a cell's images that a classifier of the styles' references takes for its style

AUC: 0.5 is blind, 1 is perfect; below 0.9 an encoder is not used for style, and the report says so. Its interval is a
jackknife over the images. The classifier is ridge regression on the vectors with balanced classes (scikit-learn); one
class is the base's own images, of other prompts than those judged. Higher is better, chance is one by the number of
classes. Least sensible n: 16 references a style. It does not measure how strong a style is: a faint style that is like no
other is classified well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from eval.intervals import bootstrap_share, jackknife
from eval.metric import Interval, Measurement, NotMeasured
from eval.seen import Seen

LEAST_AUC = 0.9
_MOST_REFERENCES = 60
"""Of each style, for the AUC: three styles of 60 have 16,000 pairs, and its jackknife takes a second."""
_FOLDS = 5


@dataclass(frozen=True)
class Confusion:
    """Shares [rows, columns] of each cell's images that were taken for each class, with their intervals; rows add up to 1."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    shares: np.ndarray
    intervals: tuple[tuple[Interval, ...], ...]


def measure_auc(seen: Seen, _: str) -> Measurement:
    """How well the encoder tells pairs of one style from pairs of two.

    Raises:
        NotMeasured: there is no other style.
    """
    sets = _reference_sets(seen)
    if len(sets) < 2:
        raise NotMeasured("no other style with references on this base model; the encoder is used unvalidated")
    chosen = [_spread(rows, _MOST_REFERENCES) for rows in sets.values()]
    vectors = np.concatenate(chosen).astype(np.float64)
    labels = np.repeat(np.arange(len(chosen)), [len(rows) for rows in chosen])
    value = pair_auc(vectors @ vectors.T, labels)
    left = np.array([_without(vectors, labels, index) for index in range(len(labels))])
    note = f"{len(labels)} references of {len(sets)} styles; below {LEAST_AUC} the encoder is not used for style"
    interval = jackknife(value, [left], f"{len(labels)} references").within(0.0, 1.0)
    return Measurement(value, len(labels), interval, note)


def measure_accuracy(seen: Seen, cell: str) -> Measurement:
    """The share of a cell's images that are taken for this style."""
    taken, classes = classify(seen, [cell])
    hits = taken[cell] == classes.index(seen.layout.style)
    note = f"chance is {1 / len(classes):.2f}: {', '.join(classes)}"
    return Measurement(float(hits.mean()), len(hits), bootstrap_share(hits, seen.prompts), note)


def confusion(seen: Seen) -> Confusion:
    """The base, the base with style words, and each style alone, against the classes."""
    layout = seen.layout
    partners = [list(cells.values())[-1] for style, cells in layout.alone.items() if style != layout.style]
    rows = [layout.base, *filter(None, (layout.words,)), layout.main, *partners]
    taken, classes = classify(seen, rows)
    hits = [[taken[row] == index for index in range(len(classes))] for row in rows]
    return Confusion(
        rows=tuple(rows),
        columns=tuple(classes),
        shares=np.array([[each.mean() for each in row] for row in hits]),
        intervals=tuple(tuple(bootstrap_share(each, seen.prompts) for each in row) for row in hits),
    )


def classify(seen: Seen, cells: list[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Each image's class, as an index into the names of the classes. Prompts are judged by a classifier that has seen the
    base's images of other prompts only.

    Raises:
        NotMeasured: a single prompt, or fewer than two references of a style.
    """
    from sklearn.linear_model import RidgeClassifier

    sets, base = _reference_sets(seen), seen.of(seen.layout.base)
    numbers = np.unique(seen.prompts)
    if len(numbers) < 2:
        raise NotMeasured("one prompt; the classifier is fitted on the base's images of other prompts")
    if few := [name for name, rows in sets.items() if len(rows) < 2]:
        raise NotMeasured(f"fewer than 2 references of {', '.join(few)}")
    classes = [*sets, seen.layout.base]
    taken = {cell: np.zeros(len(seen.of(cell)), dtype=np.int64) for cell in cells}
    for fold in range(min(_FOLDS, len(numbers))):
        judged = np.isin(seen.prompts, numbers[fold::_FOLDS])
        known = [*sets.values(), base[~judged]]
        labels = np.repeat(np.arange(len(known)), [len(rows) for rows in known])
        model = RidgeClassifier(class_weight="balanced").fit(np.concatenate(known).astype(np.float64), labels)
        for cell in cells:
            taken[cell][judged] = model.predict(seen.of(cell)[judged].astype(np.float64))
    return taken, classes


def pair_auc(cosines: np.ndarray, labels: np.ndarray) -> float:
    """Mann and Whitney's statistic over all pairs of different images: [N, N] cosines, int [N] styles."""
    from scipy.stats import rankdata

    first, second = np.triu_indices(len(labels), 1)
    same = labels[first] == labels[second]
    many, others = int(same.sum()), int((~same).sum())
    if not many or not others:
        raise NotMeasured("no pair of one style, or none of two")
    ranks = rankdata(cosines[first, second])
    return float((ranks[same].sum() - many * (many + 1) / 2) / (many * others))


def _without(vectors: np.ndarray, labels: np.ndarray, index: int) -> float:
    rest = np.delete(vectors, index, axis=0)
    return pair_auc(rest @ rest.T, np.delete(labels, index))


def _reference_sets(seen: Seen) -> Mapping[str, np.ndarray]:
    """This style's references, trained on or not, and those of the others."""
    both = [rows for rows in (seen.trained, seen.held_out) if len(rows)]
    if not both:
        raise NotMeasured(f"no references of {seen.layout.style}")
    return {seen.layout.style: np.concatenate(both), **{k: rows for k, rows in seen.others.items() if len(rows)}}


def _spread(rows: np.ndarray, most: int) -> np.ndarray:
    return rows if len(rows) <= most else rows[np.arange(most) * len(rows) // most]
