"""What a run may claim, in one headline: first of all whether it may claim anything; then what to use, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from brushset.page.template import sentence
from brushset.records import Choice, Estimate, EvalReport, Score, Trained
from brushset.spec import StyleSpec

# Fewer images than this and the scores are pointers, not evidence: 50 prompts give an interval of about one point.
FEW_IMAGES = 50
# Style is told by the trusted encoder where it was to be had.
_BASELINE = "style words"
_STYLE = ("style_similarity_csd", "style_similarity")


@dataclass(frozen=True)
class Verdict:
    """`machinery`: nothing here is quality. `unscored`: a real adapter without real scores. `better`, `worse`: by style,
    beside the baselines; `unsure`: the same by too few images, or too near to them.
    """

    tone: Literal["machinery", "unscored", "unsure", "better", "worse"]
    headline: str
    text: str


def judge(spec: StyleSpec, trained: Trained, evaluation: EvalReport, choice: Choice | None = None) -> Verdict:
    """The verdict on a run. Made-up parts come first: they outweigh every number."""
    if trained.base_random or spec.smoke:
        return _machinery(spec, trained)
    if choice is not None and choice.decided_by == "held-out loss":
        return Verdict("unscored", f"Use epoch {choice.epoch} at {choice.weight:g}", sentence(choice.reason))
    if choice is not None and choice.decided_by == "retention" and choice.meaningful:
        return _chosen(choice)
    verdict = _by_similarity(spec, evaluation, choice.weight if choice else spec.evaluate.weight)
    if choice is None or not choice.reason:
        return verdict
    return Verdict(verdict.tone, verdict.headline, f"{verdict.text} {sentence(choice.reason)}")


def _machinery(spec: StyleSpec, trained: Trained) -> Verdict:
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


def _chosen(choice: Choice) -> Verdict:
    """What to use. Better only where even the lower bound is above what style words alone do."""
    use = f"epoch {choice.epoch} at {choice.weight:g}"
    found = choice.reported or choice.picked()
    kept = found.retention if found else Estimate(value=None)
    words = choice.words.retention if choice.words else Estimate(value=None)
    text = sentence(choice.reason)
    if words.value is not None and _BASELINE not in text:
        text += f" Style words in the prompt alone bring the base to {_told(words)}."
    if not choice.feasible:
        return Verdict("worse", f"No checkpoint keeps all bounds; the best compromise is {use}", text)
    beaten = max(0.0, words.value or 0.0)
    if kept.low is None or kept.low <= beaten:
        return Verdict("unsure", f"Use {use}, though it may do no more than style words", text)
    return Verdict("better", f"Use {use}", text)


def _by_similarity(spec: StyleSpec, evaluation: EvalReport, weight: float) -> Verdict:
    own = f"{spec.name} {weight:g}"
    pairs = [(_find(evaluation, metric, own), _find(evaluation, metric, "base")) for metric in _STYLE]
    known = [(similar, base) for similar, base in pairs if similar and base and None not in (similar.value, base.value)]
    if not known:
        text = (
            "The adapter is trained, checked and packed. No real encoder could be had, so judge it by the grid below."
        )
        return Verdict("unscored", "Trained, and not scored", text)
    similar, base = known[0]
    assert similar.value is not None
    assert base.value is not None
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


def _told(estimate: Estimate) -> str:
    interval = "" if estimate.low is None else f" ({estimate.low:.2f} to {estimate.high:.2f})"
    return f"ρ {estimate.value:.2f}{interval}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
