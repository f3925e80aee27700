"""The sentence that says why a mix is advised, and which style loses by it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from brushset.records import Estimate, MixCandidate
from eval.mixing.rule import Contender, Decision

_METHODS = {"weighted": "the weighted sum", "switch": "LoRA Switch", "composite": "LoRA Composite"}


def explain(decision: Decision, contenders: Sequence[Contender], reported: MixCandidate | None) -> str:
    """Why this one."""
    return " ".join(_sentences(decision, contenders, reported))


def explain_default(candidate: MixCandidate, why: str) -> str:
    """Why the default weights are advised."""
    source = "[evaluate] pair_weights" if len(candidate.mix) == 2 else "even shares"
    return f"{candidate.cell} by the weighted sum: {source}, not a choice, since {why}."


def losing_style(candidate: MixCandidate) -> str:
    """The style of which least is left; empty where that was not measured."""
    known = {style: each.value for style, each in candidate.retention.items() if each.value is not None}
    return min(known, key=lambda style: known[style]) if len(known) == len(candidate.retention) else ""


def _sentences(decision: Decision, contenders: Sequence[Contender], reported: MixCandidate | None) -> Iterator[str]:
    chosen = decision.chosen.candidate
    yield f"{chosen.cell}, by {_METHODS[chosen.method]}: {_what_is_left(chosen)}."
    if decision.fallback:
        yield f"No candidate is within the bounds ({'; '.join(chosen.reasons)}): this is the best of those that are not."
    elif chosen.feasible is None:
        yield f"Not every bound could be looked at: {'; '.join(chosen.reasons)}."
    yield _why_it_leads(decision, len(contenders))
    yield from _methods(decision, contenders)
    if reported is not None:
        yield f"On the prompts that it was not chosen by, {_what_is_left(reported)}."


def _what_is_left(candidate: MixCandidate) -> str:
    parts = _listed([f"{told(each)} of {style}" for style, each in candidate.retention.items()])
    loser = losing_style(candidate)
    if not loser:
        return f"{parts} is left"
    if (candidate.retention[loser].value or 0.0) >= 1:
        return f"{parts} is left; none of them loses"
    return f"{parts} is left; {loser} {'loses most' if _apart(candidate, loser) else 'seems to lose most'}"


def _why_it_leads(decision: Decision, many: int) -> str:
    among = f"of {many} tried" if decision.fallback else f"of {many} tried, {len(decision.within)} within the bounds"
    leader = decision.leader
    if leader is decision.chosen:
        return f"The least that is left of a style has the highest lower bound {among}."
    assert decision.margin is not None
    better = "cheaper" if leader.candidate.method != decision.chosen.candidate.method else "more even"
    return (
        f"{leader.cell} has the highest lower bound of what is least left {among}, but cannot be told from it "
        f"(difference {told(decision.margin, signed=True)}), and this one is {better}."
    )


def _methods(decision: Decision, contenders: Sequence[Contender]) -> Iterator[str]:
    """What became of the methods that were tried besides."""
    tried = [each for each in contenders if each.candidate.method != "weighted"]
    if not tried:
        return
    name = _METHODS[decision.chosen.candidate.method]
    if decision.chosen.candidate.method == "weighted":
        names = _listed([_METHODS[each.candidate.method] for each in tried])
        yield f"{names[:1].upper()}{names[1:]} did not earn {'its' if len(tried) == 1 else 'their'} place."
    elif decision.fallback or any(each.candidate.method == "weighted" for each in decision.within):
        yield f"{name} earns its place: the weighted sum leaves less, by more than chance."
    else:
        yield f"{name} is advised because no weighted sum is within the bounds."


def _apart(candidate: MixCandidate, loser: str) -> bool:
    """Whether the loser's interval lies below all others'."""
    if not loser or candidate.retention[loser].high is None:
        return False
    highest = candidate.retention[loser].high or 0.0
    others = [each.low for style, each in candidate.retention.items() if style != loser]
    return all(low is not None and low > highest for low in others)


def told(estimate: Estimate, *, signed: bool = False) -> str:
    """`0.62 (0.51 to 0.70)`; "an unknown part" where there is no number."""
    if estimate.value is None:
        return "an unknown part"
    sign = "+" if signed else ""
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:{sign}.2f} (no interval)"
    return f"{estimate.value:{sign}.2f} ({estimate.low:{sign}.2f} to {estimate.high:{sign}.2f})"


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
