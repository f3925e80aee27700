"""What the pages call each metric, with how many decimals, in which order, and what is aimed at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from brushset.records import Score

Standing = Literal["met", "missed", "open"]

FLOOR = "references against one another"
RUN = "the run"

_ENCODERS = {"_csd": " (CSD)", "_clip": " (CLIP)"}
# Title and decimals, in the order of the pages; others appear under their own names.
_KNOWN = {
    "retention": ("Style kept, ρ", 2), "retention_over_words": ("Style kept beyond style words", 2),
    "style_similarity": ("Style similarity", 3), "style_accuracy": ("Taken for its style", 2),
    "clip_score_difference": ("CLIP score, difference to base", 2), "clip_score": ("CLIP score", 2),
    "memorisation_gap": ("Memorisation gap", 3), "copies": ("Copies", 2), "near_copies": ("Near copies (dHash)", 2),
    "loss_gap": ("Loss gap", 4), "lpips_ratio": ("Diversity to base (LPIPS)", 2),
    "vendi_ratio": ("Diversity to base (Vendi)", 2),
    "kd_dinov2_difference": ("KD (DINOv2), difference to style words", 3), "kd_dinov2": ("KD (DINOv2)", 3),
    "kd": ("KD", 3), "fid": ("FID", 1), "kid": ("KID", 4), "cmmd": ("CMMD", 3),
    "trigger_leakage": ("Style without the trigger", 2), "wrong_trigger": ("Style with another's trigger", 2),
    "trigger_strength": ("What the trigger adds, in ρ", 2), "monotonicity": ("More weight, more style", 2),
    "mix_retention": ("Least style kept in the mix", 2), "mix_balance": ("Balance of the mix", 2),
    "mix_interference": ("Worst interference", 3), "mix_monotonicity": ("More share, more style", 2),
    "style_auc": ("Encoder tells styles apart, AUC", 2),
}  # fmt: skip
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "Style": ("retention", "style_"),
    "Prompt": ("clip_score",),
    "Memorisation and diversity": ("memorisation", "copies", "near_copies", "loss_gap", "lpips", "vendi"),
    "Distances between sets": ("kd_", "kid", "fid", "cmmd"),
    "Trigger": ("trigger_", "wrong_trigger"),
    "Weights and mixes": ("mix_", "monotonicity"),
}
"""Headings of the full tables, and what the names of their metrics begin with; others come last."""


@dataclass(frozen=True)
class Goal:
    """What is aimed at: bounds of the value, and of its interval. Met where the whole interval keeps them, open where the
    value alone does. Without any bound it is told, and judges nothing.
    """

    text: str
    least: float | None = None
    most: float | None = None
    surely_least: float | None = None
    surely_most: float | None = None

    def standing(self, score: Score) -> Standing | None:
        """None where nothing was measured that means something, and where there is nothing to judge by."""
        bounds = (self.least, self.most, self.surely_least, self.surely_most)
        if score.value is None or not score.meaningful or all(bound is None for bound in bounds):
            return None
        if (self.least is not None and score.value < self.least) or (self.most is not None and score.value > self.most):
            return "missed"
        low_open = self.surely_least is not None and (score.low is None or score.low < self.surely_least)
        high_open = self.surely_most is not None and (score.high is None or score.high > self.surely_most)
        return "open" if low_open or high_open else "met"


def goals(bounds: Mapping[str, float]) -> dict[str, Goal]:
    """The goals of a style adapter, by metric. Those that a choice was bound by are the spec's own; the others are proposals,
    to be set anew after the first real runs.
    """
    fidelity = bounds.get("min_fidelity", -1.5)
    diversity = bounds.get("min_diversity", 0.8)
    memorisation = bounds.get("max_memorisation", 0.03)
    diverse = Goal(f"at least {diversity:g}", least=diversity)
    return {
        "retention_csd": Goal("at least 0.6, surely above 0.4", least=0.6, surely_least=0.4),
        "style_accuracy_csd": Goal("at least 0.85", least=0.85),
        "clip_score_difference": Goal(
            f"surely above {fidelity:g}".replace("-", "−"), least=fidelity, surely_least=fidelity
        ),
        "memorisation_gap": Goal(f"surely below {memorisation:g}", most=memorisation, surely_most=memorisation),
        "lpips_ratio": diverse,
        "vendi_ratio": diverse,
        "fid": Goal("asked for: below 30; of so few images to be read beside the floor, and not judged"),
        "kd_dinov2_difference": Goal("surely below 0: nearer than words bring the base", most=0.0, surely_most=0.0),
    }


def title_of(metric: str) -> str:
    """What a metric is called on a page."""
    stem, encoder = _split(metric)
    return f"{_KNOWN[stem][0]}{encoder}" if stem in _KNOWN else metric


def decimals_of(metric: str) -> int:
    """How many decimals of it say something."""
    stem, _ = _split(metric)
    return _KNOWN[stem][1] if stem in _KNOWN else 3


def rank_of(metric: str) -> tuple[int, int, str]:
    """Its place among metrics: of one measure the trusted encoder first, what CLIP sees of style last."""
    stem, encoder = _split(metric)
    order = list(_KNOWN)
    return (stem not in _KNOWN, order.index(stem) if stem in _KNOWN else 0, {"": "b", " (CSD)": "a"}.get(encoder, "c"))


def second_opinion_of(metric: str) -> str | None:
    """Of what CLIP sees of style, the name of the same by CSD, which leaves content out; None of others."""
    stem, encoder = _split(metric)
    if metric == "style_similarity" or encoder == _ENCODERS["_clip"]:
        return f"{stem}_csd"
    return None


def family_of(metric: str) -> str:
    """The heading that it stands under."""
    return next((name for name, starts in FAMILIES.items() if metric.startswith(starts)), "Others")


def _split(metric: str) -> tuple[str, str]:
    """`retention_csd` → ("retention", " (CSD)")."""
    for suffix, encoder in _ENCODERS.items():
        stem = metric.removesuffix(suffix)
        if stem != metric and stem in _KNOWN:
            return stem, encoder
    return metric, ""
