"""What a run may claim, in one headline: first of all whether it may claim anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from brushset.records import EvalReport, Score, Trained
from brushset.spec import StyleSpec

# Fewer images than this and the scores are pointers, not evidence: 50 prompts give an interval of about one point.
FEW_IMAGES = 50


@dataclass(frozen=True)
class Verdict:
    """`machinery`: nothing here is quality. `unscored`: a real adapter without real scores. `better`, `worse`: by style
    similarity, beside the base; `unsure`: the same by too few images.
    """

    tone: Literal["machinery", "unscored", "unsure", "better", "worse"]
    headline: str
    text: str


def judge(spec: StyleSpec, trained: Trained, evaluation: EvalReport) -> Verdict:
    """The verdict on a run. Made-up parts come first: they outweigh every number."""
    if trained.base_random or spec.smoke:
        why = []
        if spec.smoke:
            why.append(f"it is a smoke run of {trained.steps} steps")
        if trained.base_random:
            why.append("its base model is made of random numbers")
        text = (
            f"{_capital(' and '.join(why))}. Every stage ran and its output was checked, and that is all it shows: "
            "no number and no image below says anything about quality."
        )
        return Verdict("machinery", "This run proves only that the machinery works", text)
    own = f"{spec.name} {spec.evaluate.weight:g}"
    similar, base = _find(evaluation, "style_similarity", own), _find(evaluation, "style_similarity", "base")
    if similar is None or base is None or similar.value is None or base.value is None:
        text = (
            "The adapter is trained, checked and packed. No real encoder could be had, so judge it by the grid below."
        )
        return Verdict("unscored", "Trained, and not scored", text)
    closer = similar.value > base.value
    text = f"Style similarity is {similar.value:.3f}, the base's {base.value:.3f}. {_prompt_fidelity(evaluation, own)}"
    if similar.n < FEW_IMAGES:
        headline = "Seems closer to the style than the base" if closer else "Seems no closer to the style than the base"
        text += f"With {similar.n} images a cell these are pointers, not evidence: believe the grid first."
        return Verdict("unsure", headline, text)
    headline = "Closer to the style than the base" if closer else "No closer to the style than the base"
    return Verdict("better" if closer else "worse", headline, text.strip())


def _prompt_fidelity(evaluation: EvalReport, own: str) -> str:
    score, base = _find(evaluation, "clip_score", own), _find(evaluation, "clip_score", "base")
    if score is None or base is None or score.value is None or base.value is None:
        return ""
    return f"Prompts are followed with a CLIP score of {score.value:.1f}, by the base with {base.value:.1f}. "


def _find(evaluation: EvalReport, metric: str, cell: str) -> Score | None:
    """A score that means something, or None."""
    found = [score for score in evaluation.scores if (score.metric, score.cell) == (metric, cell)]
    return found[0] if found and found[0].meaningful else None


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
