"""What a round says of each candidate: estimates with 95 % intervals over prompts, all against the base at the same places.

    ρ            eval/style_similarity.py, 0 as the base, 1 as alike as the references are to each other
    fidelity     eval/clip_score.py, points by which the prompt is followed better than by the base
    diversity    eval/diversity.py: LPIPS between seeds by the base's; where there is one seed Vendi's number over all images,
                 which also falls because a style is one
    memorisation eval/memorisation.py's gap less that of the base: which images were held out is luck, and both have it

An encoder of style is used where it tells this style's references from the base's images: the share of pairs (two
references; a reference and an image by the base) in which the references are more alike is 0.9 or more. No other style is
asked for, so that a choice does not change with what else was trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from brushset.records import Candidate, Estimate
from eval.choose.candidates import Way
from eval.clip_score import measure_clip_difference
from eval.diversity import measure_lpips_ratio, measure_vendi_ratio
from eval.intervals import bootstrap_prompts, ratio
from eval.layout import Layout
from eval.look import Extractor
from eval.memorisation import gap_rows
from eval.metric import ExtractorName, Interval, Measurement, NotMeasured
from eval.seen import Seen
from eval.style_classes import LEAST_AUC
from eval.style_similarity import measure_retention, reference_level, similarities
from eval.table import STYLE_ENCODERS

_NAMED: Mapping[str, ExtractorName] = {
    "fidelity": "clip",
    "lpips": "lpips",
    "vendi": "dinov2",
    "memorisation": "dinov2",
}
LOOKED_THROUGH: tuple[ExtractorName, ...] = tuple(dict.fromkeys((*STYLE_ENCODERS, *_NAMED.values())))
_MOST_ROWS = 200


@dataclass(frozen=True)
class Ruler:
    """The encoder that style is measured by; `unfit` says why another that is trusted more was passed over."""

    name: ExtractorName
    id: str
    meaningful: bool
    unfit: tuple[str, ...] = ()


@dataclass(frozen=True)
class Looked:
    """What all extractors see of a round's images. Cells are named as the images of a way are. `one_seed`: no round has
    more.
    """

    seen: Mapping[ExtractorName, Seen]
    extractors: Mapping[ExtractorName, Extractor]
    ruler: Ruler | None
    layout: Layout
    one_seed: bool = False

    def estimates(self, cell: str) -> dict[str, Estimate]:
        """The four estimates of a cell, by the names of Candidate's fields."""
        vendi, lpips = ("vendi", measure_vendi_ratio), ("lpips", measure_lpips_ratio)
        return {
            "retention": self._retention(cell),
            "fidelity": self._estimate("fidelity", measure_clip_difference, cell),
            "diversity": self._estimate(*(vendi if self.one_seed else lpips), cell),
            "memorisation": self._estimate("memorisation", measure_gap_beyond_base, cell),
        }

    def measured_by(self) -> dict[str, str]:
        """Which extractor each estimate is of; those that are not there are left out."""
        diversity = "vendi" if self.one_seed else "lpips"
        names = {"fidelity": _NAMED["fidelity"], "diversity": _NAMED[diversity], "memorisation": _NAMED["memorisation"]}
        found = {what: self.extractors[name].identity.id for what, name in names.items() if name in self.seen}
        return ({"retention": self.ruler.id} if self.ruler else {}) | found

    def beats(self, one: str, other: str) -> bool:
        """Whether a cell keeps more of the style than another, beyond noise."""
        interval = self.difference(one, other)
        return interval is not None and interval.low is not None and interval.low > 0

    def difference(self, one: str, other: str) -> Interval | None:
        """The interval of ρ of one cell less that of another; None where style is not measured."""
        if self.ruler is None:
            return None
        return retention_difference(self.seen[self.ruler.name], one, other)

    def _retention(self, cell: str) -> Estimate:
        if self.ruler is None:
            return Estimate(value=None, note="was not measured: no encoder of style serves")
        return _estimated(measure_retention, self.seen[self.ruler.name], cell)

    def _estimate(self, what: str, measure: Callable[[Seen, str], Measurement], cell: str) -> Estimate:
        name = _NAMED[what]
        if name not in self.seen:
            why = self.extractors[name].identity.note or "its weights are not there"
            return Estimate(value=None, note=f"was not measured: {why}")
        return _estimated(measure, self.seen[name], cell)


def find_ruler(seen: Mapping[ExtractorName, Seen], extractors: Mapping[ExtractorName, Extractor]) -> Ruler | str:
    """The first encoder of style that tells the references from the base's images; else why there is none. One that is
    made up means nothing in any case, and is used to show that the code runs.
    """
    unfit: list[str] = []
    for name in STYLE_ENCODERS:
        identity = extractors[name].identity
        if name not in seen:
            unfit.append(f"{identity.id}: {identity.note or 'its weights are not there'}")
            continue
        try:
            auc = tells_from_base(seen[name])
        except NotMeasured as error:
            unfit.append(f"{identity.id}: {error}")
            continue
        if auc >= LEAST_AUC or not identity.meaningful:
            return Ruler(name, identity.id, identity.meaningful, tuple(unfit))
        unfit.append(
            f"{identity.id} cannot tell the references from the base's images: AUC {auc:.2f}, below {LEAST_AUC}"
        )
    return "; ".join(unfit)


def tells_from_base(seen: Seen) -> float:
    """P(cosine of two references > cosine of a reference and an image by the base), ties counted half.

    Raises:
        NotMeasured: fewer than two references.
    """
    from scipy.stats import rankdata

    both = [rows for rows in (seen.trained, seen.held_out) if len(rows)]
    references = np.concatenate(both).astype(np.float64)[:_MOST_ROWS] if both else np.zeros((0, 1))
    if len(references) < 2:
        raise NotMeasured(f"{len(references)} references, 2 are wanted")
    among = (references @ references.T)[np.triu_indices(len(references), 1)]
    across = (references @ seen.of(seen.layout.base).astype(np.float64).T).ravel()
    ranks = rankdata(np.concatenate([among, across]))
    above = ranks[: len(among)].sum() - len(among) * (len(among) + 1) / 2
    return float(above / (len(among) * len(across)))


def retention_difference(seen: Seen, one: str, other: str) -> Interval:
    """The interval of ρ(one) − ρ(other), prompt by prompt."""
    level = reference_level(seen.references())
    columns = np.stack([similarities(seen, cell) for cell in (one, other, seen.layout.base)], axis=1)

    def statistic(means: np.ndarray) -> np.ndarray:
        return ratio(means[..., 0] - means[..., 1], level - means[..., 2])

    return bootstrap_prompts(columns, seen.prompts, statistic)


def measure_gap_beyond_base(seen: Seen, cell: str) -> Measurement:
    """The memorisation gap of a cell less that of the base at the same places, in cosines.

    Raises:
        NotMeasured: fewer than 4 held-out images.
    """
    each = gap_rows(seen, cell) - gap_rows(seen, seen.layout.base)
    return Measurement(float(each.mean()), len(each), bootstrap_prompts(each, seen.prompts), "less the base's")


def unmeasured(way: Way, weights: str, round_number: int, why: str) -> Candidate:
    """A candidate of which no image came out."""
    nothing = Estimate(value=None, note=f"was not measured: {why}")
    return Candidate(
        weights=weights, epoch=way.epoch, weight=way.weight, round=round_number, images=0, retention=nothing,
        fidelity=nothing, diversity=nothing, memorisation=nothing, feasible=False, reasons=(why,),
    )  # fmt: skip


def _estimated(measure: Callable[[Seen, str], Measurement], seen: Seen, cell: str) -> Estimate:
    try:
        found = measure(seen, cell)
    except (NotMeasured, np.linalg.LinAlgError) as error:
        return Estimate(value=None, note=f"was not measured: {error}")
    if not np.isfinite(found.value):
        return Estimate(value=None, note=f"was not measured: it came out as {found.value}")
    note = found.note if found.interval.low is not None else f"{found.note}; {found.interval.method}"
    return Estimate(value=found.value, low=found.interval.low, high=found.interval.high, note=note)
