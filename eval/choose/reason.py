"""The choice in a sentence that needs no other: what is used, what it keeps and costs, why not the others."""

from __future__ import annotations

from collections.abc import Sequence

from brushset.records import Candidate, EpochLoss, Estimate
from eval.choose.candidates import Way, listed
from eval.choose.rule import Pick, way


def by_retention(pick: Pick, others: Sequence[Candidate], report: tuple[Candidate, Candidate], *, beaten: bool) -> str:
    """Why the chosen one, by style. `report` are the chosen one and the base with style words on prompts that it was not
    chosen by; `beaten` whether it keeps more than these words beyond noise.
    """
    chosen, words = report
    parts = [_kept(chosen, words, beaten=beaten), _cost(chosen)]
    if pick.feasible and chosen.breaks:
        parts.append(f"on those prompts it is not within the bound of {' and '.join(chosen.breaks)}")
    if not pick.feasible:
        broken = ", ".join(sorted({name for each in others for name in each.breaks}))
        parts.append(f"no candidate is within all bounds ({broken}): this is the knee between style and prompt")
    elif pick.tied:
        parts.append(f"{_several(pick.tied)} {'is' if len(pick.tied) == 1 else 'are'} no better beyond noise")
    else:
        parts.append("every other finalist keeps less of the style or breaks a bound")
    parts += _warnings(pick, others)
    return f"{way(chosen)}: {'; '.join(part for part in parts if part)}"


def by_loss(chosen: Way, loss: EpochLoss, why_not: str) -> str:
    """Why the chosen one, by the loss."""
    return (
        f"{chosen}: its loss on held-out images is the lowest, {loss.held_out:.4f}; style was not measured: {why_not}"
    )


def by_default(chosen: Way, *, validated: bool, why_not: str) -> str:
    """Why nothing else."""
    origin = "the epoch that validation chose" if validated else "the last one"
    return f"{chosen}: {origin}, at [evaluate] weight, for want of anything better: {why_not}"


def _kept(chosen: Candidate, words: Candidate, *, beaten: bool) -> str:
    kept = f"keeps {_percent(chosen.retention)} of the style on prompts that it was not chosen by"
    if words.retention.value is None or chosen.retention.value is None:
        return kept
    said = f"the base with style words {_percent(words.retention)}"
    if beaten:
        return f"{kept}, {said}"
    return f"{kept}, but does not beat {said} beyond noise"


def _cost(chosen: Candidate) -> str:
    fidelity = chosen.fidelity
    if fidelity.value is None:
        return f"fidelity {fidelity.note}"
    bounds = "" if fidelity.low is None or fidelity.high is None else f" ({-fidelity.high:.1f} to {-fidelity.low:.1f})"
    if fidelity.value > 0:
        return f"costs no CLIP points ({fidelity.value:+.1f} by the base's)"
    return f"costs {-fidelity.value:.1f} CLIP points{bounds}"


def _warnings(pick: Pick, others: Sequence[Candidate]) -> list[str]:
    """What breaks bounds among the others, by kind; and what of the chosen one could not be measured."""
    found = []
    for breach, said in (("memorisation", "copies training images"), ("diversity", "makes images alike")):
        hit = {each.epoch for each in others if breach in each.breaks}
        # A weight that does not is a way to use that epoch: it is named only where every weight does.
        whole = sorted(epoch for epoch in hit if all(breach in each.breaks for each in others if each.epoch == epoch))
        if whole:
            verb = said if len(whole) == 1 else said.replace("copies", "copy").replace("makes", "make")
            found.append(f"{listed(whole)} {verb} at every weight tried")
    unknown = [name for name in ("fidelity", "diversity", "memorisation") if getattr(pick.chosen, name).value is None]
    if unknown:
        found.append(f"not measured: {', '.join(unknown)}")
    return found


def _several(candidates: Sequence[Candidate]) -> str:
    named = [str(way(each)) for each in sorted(candidates, key=way)]
    return ", ".join(named[:3]) + (f" and {len(named) - 3} more" if len(named) > 3 else "")


def _percent(estimate: Estimate) -> str:
    if estimate.value is None:
        return "an unknown share"
    value, *bounds = (
        f"{round(number, 2) + 0.0:.0%}"  # not "-0%"
        for number in (estimate.value, estimate.low, estimate.high)
        if number is not None
    )
    return f"{value} ({bounds[0]} to {bounds[1]})" if len(bounds) == 2 else value
