"""Who is chosen. Pure: from candidates' estimates to one of them.

    feasible = lower bound of the CLIP score's difference to the base ≥ min_fidelity, diversity ≥ min_diversity,
               upper bound of the memorisation gap ≤ max_memorisation, and ρ surely above 0: one that leaves the style out
               keeps to every other bound
    leader   = the feasible one whose lower bound of ρ is highest
    chosen   = of those that the leader does not beat beyond noise, the earliest epoch, of these the lowest weight

"Beyond noise" is the 95 % interval of the paired difference of ρ, prompt by prompt: intervals of two candidates overlap
long after their difference is sure, since both rise and fall with the prompts. The earlier epoch is preferred as the
simpler model is by the one-standard-error rule (Breiman et al. 1984, section 3.4.3).

Where nobody is feasible: the knee of the Pareto front of ρ and fidelity, the point farthest above the straight line
between its ends, both axes scaled to the front (Branke et al. 2004, "Finding Knees in Multi-objective Optimization").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal

from brushset.records import Candidate, Estimate
from brushset.spec import EvaluateSection
from eval.choose.candidates import Way

Breach = Literal["style", "fidelity", "diversity", "memorisation"]
Beats = Callable[[Way, Way], bool]
"""Whether the first keeps more of the style than the second, beyond noise, at the same places."""
_LEAST_LENGTH = 1e-12


@dataclass(frozen=True)
class Bounds:
    """What a chosen adapter may cost; fields of [evaluate]."""

    min_fidelity: float
    min_diversity: float
    max_memorisation: float

    @classmethod
    def of(cls, settings: EvaluateSection) -> Bounds:
        """Those of a spec."""
        return cls(settings.min_fidelity, settings.min_diversity, settings.max_memorisation)


@dataclass(frozen=True)
class Pick:
    """The chosen one, who led, and who was no better than the chosen one beyond noise. `feasible` False: it is a knee."""

    chosen: Candidate
    leader: Candidate
    tied: tuple[Candidate, ...]
    feasible: bool


def judge(candidate: Candidate, bounds: Bounds) -> Candidate:
    """The candidate with what it breaks; feasible None where it breaks nothing, and something was not measured."""
    reasons: list[str] = list(candidate.reasons)
    breaks: list[Breach] = []
    unknown = False
    for breach, estimate, kept, wanted in _bounds_of(candidate, bounds):
        if estimate.value is None and breach == "style":
            continue  # such a one is not chosen in any case
        if estimate.value is None:
            unknown = True
            reasons.append(f"{breach} {estimate.note or 'was not measured'}")
        elif not kept:
            breaks.append(breach)
            reasons.append(f"{breach} {told(estimate)}: {wanted}")
    feasible = False if breaks or is_broken(candidate) else (None if unknown else True)
    return candidate.model_copy(update={"feasible": feasible, "reasons": tuple(reasons), "breaks": tuple(breaks)})


def _bounds_of(candidate: Candidate, bounds: Bounds) -> list[tuple[Breach, Estimate, bool, str]]:
    """Measure, estimate, whether its bound holds, and what was wanted."""
    fidelity, diversity, copied = candidate.fidelity, candidate.diversity, candidate.memorisation
    return [
        ("style", candidate.retention, lower(candidate.retention) > 0, "it has to be surely above the base's 0"),
        ("fidelity", fidelity, lower(fidelity) >= bounds.min_fidelity, f"at least {bounds.min_fidelity:g} is wanted"),
        ("diversity", diversity, _value(diversity) >= bounds.min_diversity, f"{bounds.min_diversity:g} is wanted"),
        ("memorisation", copied, upper(copied) <= bounds.max_memorisation, f"{bounds.max_memorisation:g} is allowed"),
    ]


def is_broken(candidate: Candidate) -> bool:
    """Whether its images could not be made, or are of one single colour: then nothing of it is measured."""
    return candidate.images == 0


def is_hopeless(candidate: Candidate, bounds: Bounds) -> bool:
    """Whether it breaks a bound even at the friendly end of its interval: more images will not save it."""
    return (
        upper(candidate.retention, 1.0) <= 0
        or upper(candidate.fidelity, 0.0) < bounds.min_fidelity
        or upper(candidate.diversity, 1.0) < bounds.min_diversity
        or lower(candidate.memorisation, 0.0) > bounds.max_memorisation
    )


def survivors(
    candidates: Sequence[Candidate], bounds: Bounds, most: int, beats: Beats, *, shrink: float = 1.0
) -> list[Candidate]:
    """Who goes on, at most so many: those whose ρ may reach that of the leader, who is the best of those that will be
    feasible if the next round confirms their values with intervals `shrink` times as wide.

    Where they are too many they come by turns: the earliest that the leader does not beat, who of those to be feasible may
    be best, and who of all may be best, by upper bounds.
    """
    measured = [each for each in candidates if each.retention.value is not None]
    alive = [each for each in measured if not is_hopeless(each, bounds)] or measured
    if not alive:
        return []
    hopeful = [each for each in alive if judge(_narrowed(each, shrink), bounds).feasible is not False] or alive
    leader = _first_by(hopeful, lambda each: lower(each.retention))
    reach = [each for each in alive if upper(each.retention) >= lower(leader.retention)]
    promising = sorted(reach, key=lambda each: (-upper(each.retention), way(each)))
    feasible = [each for each in promising if each in hopeful]
    early = sorted((each for each in feasible if not beats(way(leader), way(each))), key=way)
    turns = [leader, *(each for turn in zip_longest(early, feasible, promising) for each in turn if each)]
    return list({way(each): each for each in turns}.values())[:most]


def _narrowed(candidate: Candidate, shrink: float) -> Candidate:
    """As it would be if its values were confirmed by more images; nothing is said yet of what it breaks."""

    def narrow(estimate: Estimate) -> Estimate:
        if estimate.value is None or estimate.low is None or estimate.high is None:
            return estimate
        low, high = (estimate.value + shrink * (bound - estimate.value) for bound in (estimate.low, estimate.high))
        return estimate.model_copy(update={"low": low, "high": high})

    changes = {
        name: narrow(getattr(candidate, name)) for name in ("retention", "fidelity", "diversity", "memorisation")
    }
    return candidate.model_copy(update={**changes, "reasons": (), "breaks": ()})


def choose(candidates: Sequence[Candidate], bounds: Bounds, beats: Beats) -> Pick | None:
    """The choice among candidates that were looked at on the same places; None where ρ of none was measured."""
    measured = [each for each in candidates if each.retention.value is not None and not is_broken(each)]
    if not measured:
        return None
    feasible = [each for each in measured if each.feasible is not False]
    if not feasible:
        found = knee(measured, bounds)
        return Pick(found, found, (), feasible=False)
    leader = _first_by(feasible, lambda each: lower(each.retention))
    tied = [each for each in feasible if each is leader or not beats(way(leader), way(each))]
    chosen = min(tied, key=way)
    return Pick(chosen, leader, tuple(each for each in tied if each is not chosen), feasible=True)


def knee(candidates: Sequence[Candidate], bounds: Bounds) -> Candidate:
    """Of those that are not shown to copy training images, where there are such, the knee of the front."""
    honest = [each for each in candidates if lower(each.memorisation, 0.0) <= bounds.max_memorisation]
    points = sorted(front(honest or candidates), key=lambda each: (_value(each.retention), way(each)))
    first, last = points[0], points[-1]
    width = _value(last.retention) - _value(first.retention)
    height = _value(first.fidelity) - _value(last.fidelity)

    def above(each: Candidate) -> float:
        if width < _LEAST_LENGTH or height < _LEAST_LENGTH:
            return 0.0
        kept = (_value(each.retention) - _value(first.retention)) / width
        followed = (_value(each.fidelity) - _value(last.fidelity)) / height
        return round(kept + followed - 1, 9)  # equal points differ by rounding

    return _first_by(points, above)


def front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those of which no other keeps more of the style and of the prompt. Where fidelity was not measured, style decides."""
    measured = [each for each in candidates if each.retention.value is not None]
    return [each for each in measured if not any(_dominates(other, each) for other in measured)]


def _dominates(one: Candidate, other: Candidate) -> bool:
    mine = (_value(one.retention), _value(one.fidelity))
    others = (_value(other.retention), _value(other.fidelity))
    return mine != others and all(a >= b for a, b in zip(mine, others, strict=True))


def way(candidate: Candidate) -> Way:
    """Which it is."""
    return Way(candidate.epoch, candidate.weight)


def lower(estimate: Estimate, without: float = float("-inf")) -> float:
    """The lower bound; the value where there is no interval, `without` where there is no value."""
    found = estimate.value if estimate.low is None else estimate.low
    return without if found is None else found


def upper(estimate: Estimate, without: float = float("inf")) -> float:
    """The upper bound, likewise."""
    found = estimate.value if estimate.high is None else estimate.high
    return without if found is None else found


def told(estimate: Estimate) -> str:
    """`-1.20 (-2.10 to -0.30)`."""
    if estimate.value is None:
        return "not measured"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.2f}"
    return f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"


def _value(estimate: Estimate) -> float:
    return 0.0 if estimate.value is None else estimate.value


def _first_by(candidates: Sequence[Candidate], key: Callable[[Candidate], float]) -> Candidate:
    """The largest by `key`; of equals the earliest epoch, then the lowest weight."""
    return max(sorted(candidates, key=way), key=key)
