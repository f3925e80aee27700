"""Every metric: what it looks through, of what it is measured, which way is better. A new metric is one file, one line here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from eval import diversity, fid, kernel_distance, memorisation, mixes, style_classes, style_similarity, trigger
from eval.clip_score import measure_clip_difference, measure_clip_score
from eval.layout import FLOOR, RUN, Layout
from eval.metric import ExtractorName, Measurement
from eval.seen import Seen

STYLE_ENCODERS: tuple[ExtractorName, ...] = ("csd", "clip")
"""Which encoders style is measured by, the trusted one first: CLIP's embedding holds content too."""


@dataclass(frozen=True)
class Metric:
    """One row of the table. `subjects` names what it is measured of: cells, or groups of cells. `style` marks the measures
    of style, which an encoder that cannot tell styles apart does not give. `higher_is_better` None: neither way.
    """

    measure: Callable[[Seen, str], Measurement]
    extractor: ExtractorName
    higher_is_better: bool | None
    subjects: Callable[[Layout], Sequence[str]]
    style: bool = False


def _judged(layout: Layout) -> list[str]:
    return layout.judged


def _judged_and_floor(layout: Layout) -> list[str]:
    return [*layout.judged, FLOOR]


def _adapted(layout: Layout) -> list[str]:
    return layout.adapted


def _words_and_adapted(layout: Layout) -> list[str]:
    return [*filter(None, (layout.words,)), *layout.adapted]


def _base_and_own(layout: Layout) -> list[str]:
    return [layout.base, *layout.own]


def _main(layout: Layout) -> list[str]:
    return [layout.main]


def _mixes(layout: Layout) -> list[str]:
    return list(layout.mixes)


def _sums(layout: Layout) -> list[str]:
    return list(layout.sums)


def _swept_pairs(layout: Layout) -> list[str]:
    found = {partner: layout.pair(partner) for partner in layout.partners}
    return [f"{layout.style} + {partner}" for partner, mixed in found.items() if len(mixed) >= mixes.LEAST_WEIGHTS]


def _run(_: Layout) -> Sequence[str]:
    return [RUN]


def _no_trigger(layout: Layout) -> list[str]:
    return [layout.no_trigger or RUN]


def _wrong_trigger(layout: Layout) -> list[str]:
    return [layout.wrong_trigger or RUN]


def _of_style(encoder: ExtractorName) -> dict[str, Metric]:
    """The measures of style, by one encoder; CLIP's similarity has the plain name, under which it is long known."""
    similarity, retention = style_similarity.measure_style_similarity, style_similarity.measure_retention
    over_words = style_similarity.measure_retention_over_words
    return {
        "style_similarity" + ("" if encoder == "clip" else f"_{encoder}"): Metric(
            similarity, encoder, True, _judged_and_floor, style=True
        ),
        f"retention_{encoder}": Metric(retention, encoder, True, _words_and_adapted, style=True),
        f"retention_over_words_{encoder}": Metric(over_words, encoder, True, _adapted, style=True),
        f"style_accuracy_{encoder}": Metric(style_classes.measure_accuracy, encoder, True, _main, style=True),
        f"style_auc_{encoder}": Metric(style_classes.measure_auc, encoder, True, _run),
        f"monotonicity_{encoder}": Metric(mixes.measure_monotonicity, encoder, True, _run, style=True),
        f"trigger_strength_{encoder}": Metric(trigger.measure_strength, encoder, None, _main, style=True),
        f"trigger_leakage_{encoder}": Metric(trigger.measure_leakage, encoder, None, _no_trigger, style=True),
        f"wrong_trigger_{encoder}": Metric(trigger.measure_wrong_trigger, encoder, None, _wrong_trigger, style=True),
        f"mix_retention_{encoder}": Metric(mixes.measure_mix_retention, encoder, True, _mixes, style=True),
        f"mix_balance_{encoder}": Metric(mixes.measure_mix_balance, encoder, True, _mixes, style=True),
        f"mix_interference_{encoder}": Metric(mixes.measure_mix_interference, encoder, True, _sums, style=True),
        f"mix_monotonicity_{encoder}": Metric(mixes.measure_mix_monotonicity, encoder, True, _swept_pairs, style=True),
    }


METRICS: dict[str, Metric] = {
    "clip_score": Metric(measure_clip_score, "clip", True, _judged),
    "clip_score_difference": Metric(measure_clip_difference, "clip", True, _words_and_adapted),
    **{name: metric for encoder in STYLE_ENCODERS for name, metric in _of_style(encoder).items()},
    "fid": Metric(fid.measure_fid, "inception", False, _judged_and_floor),
    "kid": Metric(kernel_distance.measure_kid, "inception", False, _judged_and_floor),
    "kd_dinov2": Metric(kernel_distance.measure_kd, "dinov2", False, _judged_and_floor),
    "kd_dinov2_difference": Metric(kernel_distance.measure_kd_difference, "dinov2", False, _adapted),
    "kd_clip": Metric(kernel_distance.measure_kd, "clip", False, _judged_and_floor),
    "cmmd": Metric(kernel_distance.measure_cmmd, "clip", False, _judged_and_floor),
    "memorisation_gap": Metric(memorisation.measure_gap, "dinov2", False, _base_and_own),
    "copies": Metric(memorisation.measure_copies, "dinov2", False, _base_and_own),
    "near_copies": Metric(memorisation.measure_near_copies, "dhash", False, _base_and_own),
    "lpips_ratio": Metric(diversity.measure_lpips_ratio, "lpips", True, _adapted),
    "vendi_ratio": Metric(diversity.measure_vendi_ratio, "dinov2", True, _adapted),
}
