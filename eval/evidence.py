"""What stands beside the scores: the confusion matrix, what mixes leave of each style, and the likest training images."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from brushset.records import Estimate, Matrix, NearPair
from eval.look import Extractor, Pictures
from eval.memorisation import COPY_BITS, bits_apart, copy_threshold, nearest_trained
from eval.metric import ExtractorName, NotMeasured
from eval.mixes import PerStyle, style_interference, style_retention
from eval.seen import Seen
from eval.style_classes import confusion
from eval.table import STYLE_ENCODERS

MOST_PAIRS = 8


def matrices(seen: Mapping[ExtractorName, Seen], extractors: Mapping[ExtractorName, Extractor]) -> tuple[Matrix, ...]:
    """Of each encoder of style that is there: confusion, retention and interference in mixes."""
    found: list[Matrix] = []
    for name in STYLE_ENCODERS:
        if name not in seen:
            continue
        identity = extractors[name].identity
        about = {"extractor": identity.id, "meaningful": identity.meaningful}
        found += _confusion(seen[name], f"confusion_{name}", about)
        if seen[name].layout.mixes:
            found.append(_of_mixes(seen[name], f"mix_retention_{name}", style_retention, about))
            found.append(_of_mixes(seen[name], f"mix_interference_{name}", style_interference, about))
    return tuple(found)


def nearest_pairs(
    pictures: Pictures, seen: Mapping[ExtractorName, Seen], extractors: Mapping[ExtractorName, Extractor], *, relative: Callable[[str, int], str],
) -> tuple[NearPair, ...]:  # fmt: skip
    """The adapter's images most like training images, the likest first. `relative` gives the path in the run of an image of
    the cell, or of the trained images where the cell is empty, by its number.
    """
    if "dinov2" not in seen:
        return ()
    layout, identity = pictures.layout, extractors["dinov2"].identity
    try:
        found = nearest_trained(seen["dinov2"], layout.main, MOST_PAIRS)
        bits = bits_apart(seen["dhash"].of(layout.main), seen["dhash"].trained)
        threshold = copy_threshold(seen["dinov2"])
    except NotMeasured:  # the scores `copies` and `near_copies` say why
        return ()
    return tuple(
        NearPair(
            cell=layout.main,
            image=relative(layout.main, pair.place),
            trained=relative("", pair.trained),
            cosine=pair.cosine,
            bits=int(bits[pair.place, pair.trained]),
            copied=pair.cosine > threshold or bool(bits[pair.place, pair.trained] <= COPY_BITS),
            extractor=identity.id,
            meaningful=identity.meaningful,
        )
        for pair in found
    )


def _confusion(seen: Seen, name: str, about: Mapping[str, object]) -> list[Matrix]:
    try:
        found = confusion(seen)
    except NotMeasured:  # the score of the accuracy says why
        return []
    entries = tuple(
        tuple(
            Estimate(value=float(share), low=interval.low, high=interval.high)
            for share, interval in zip(shares, intervals, strict=True)
        )
        for shares, intervals in zip(found.shares, found.intervals, strict=True)
    )
    note = f"{len(seen.prompts)} images a row of generated ones, in folds by prompt"
    return [
        Matrix.model_validate(
            {"name": name, "rows": found.rows, "columns": found.columns, "entries": entries, "note": note, **about}
        )
    ]


def _of_mixes(
    seen: Seen, name: str, measure: Callable[[Seen, str, str], PerStyle], about: Mapping[str, object]
) -> Matrix:
    mixes = seen.layout.mixes
    styles = list(dict.fromkeys(style for parts in mixes.values() for style in parts))
    entries = tuple(tuple(_entry(seen, mix, style, measure) for style in styles) for mix in mixes)
    return Matrix.model_validate(
        {
            "name": name,
            "rows": tuple(mixes),
            "columns": tuple(styles),
            "entries": entries,
            "note": f"{len(seen.prompts)} images a mix",
            **about,
        }
    )


def _entry(seen: Seen, mix: str, style: str, measure: Callable[[Seen, str, str], PerStyle]) -> Estimate:
    if style not in seen.layout.mixes[mix]:
        return Estimate(value=None, note="not in this mix")
    found = measure(seen, mix, style)
    if found.value is None:
        return Estimate(value=None, note=f"not measured: {found.note}")
    low, high = (found.interval.low, found.interval.high) if found.interval else (None, None)
    return Estimate(value=found.value, low=low, high=high)
