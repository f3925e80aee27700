"""How many images are spent on what: successive halving (Jamieson & Talwalkar 2016, arXiv 1502.07943), and a budget.

The first round looks at every candidate on few prompts with one seed, the second at a quarter of them on all prompts of one
half with one seed, the last at the best few with all seeds. What was made in one round is used in the next. The other half
of the prompts is kept for the chosen one alone: who wins on few images is also who had luck on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from brushset.spec import SHOWN_PROMPTS, EvaluateSection
from eval.cells import unique_seeds

SCREENING_PROMPTS = 6
"""Of the first round: enough for an interval by Student's t (2.6 standard errors), 240 images of 40 candidates."""
NEIGHBOURS = 4
"""Epochs beside the two best that come in with the second round, where the first had been thinned."""
_LEAST_PROMPTS = 4
_LEAST_CHECKPOINTS = 3


def halves(count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Prompts to choose on, and prompts to report on, by number: every other one, so that both have all subjects."""
    numbers = tuple(range(count))
    return numbers[0::2], numbers[1::2] or numbers


@dataclass(frozen=True)
class Round:
    """At most so many ways are looked at on these places."""

    ways: int
    prompts: tuple[int, ...]
    seeds: tuple[int, ...]

    @property
    def places(self) -> int:
        """Images of each way."""
        return len(self.prompts) * len(self.seeds)


@dataclass(frozen=True)
class Plan:
    """What choosing takes at most. `checkpoints` at `weights` each are in the first round."""

    checkpoints: int
    weights: int
    finalists: int
    screened: int
    chosen_on: tuple[int, ...]
    reported_on: tuple[int, ...]
    seeds: tuple[int, ...]
    thinned: bool = False
    measured: bool = True

    @property
    def shown(self) -> tuple[int, ...]:
        """The prompts of which every candidate is shown, with the first seed; among those of the first round."""
        return self.chosen_on[: min(self.screened, SHOWN_PROMPTS)]

    def rounds(self) -> list[Round]:
        """In order; a round that looks at the places of the one before is none."""
        one, ways = self.seeds[:1], self.checkpoints * self.weights
        if not self.measured:
            return [Round(ways, self.shown, one)]
        second = min(ways, max(2 * self.finalists, ways // 4))
        planned = [
            Round(ways, self.chosen_on[: self.screened], one),
            Round(second, self.chosen_on, one),
            Round(min(ways, self.finalists), self.chosen_on, self.seeds),
        ]
        if ways <= self.finalists:
            return planned[2:]
        before = [None, *planned[:-1]]
        return [each for earlier, each in zip(before, planned, strict=True) if not _same_places(earlier, each)]

    @property
    def images(self) -> int:
        """At most: fewer are made where base images are kept from another run."""
        if not self.measured:
            return (self.checkpoints * self.weights + 1) * len(self.shown)
        adapted, seen = 0, 0
        for each in self.rounds():
            adapted += each.ways * (each.places - seen)
            seen = each.places
        if self.thinned:
            adapted += NEIGHBOURS * self.screened
        if len(self.rounds()) > 1:  # others come in where nobody of the last round is within the bounds
            last = self.rounds()[-1]
            adapted += min(last.ways, self.checkpoints * self.weights - last.ways) * (last.places - self.screened)
        half, chosen_half = len(self.reported_on) * len(self.seeds), len(self.chosen_on) * len(self.seeds)
        base, words = chosen_half + half, half + len(self.shown)
        return adapted + base + words + half


def full_plan(
    settings: EvaluateSection, checkpoints: int, weights: int, *, thinned: bool = False, measured: bool = True
) -> Plan:
    """All that is worth doing; `measured` False: nothing can be measured, and a few images are made to be looked at."""
    chosen_on, reported_on = halves(len(settings.prompts))
    return Plan(
        checkpoints=checkpoints,
        weights=weights,
        finalists=settings.choose_finalists,
        screened=min(SCREENING_PROMPTS, len(chosen_on)),
        chosen_on=chosen_on,
        reported_on=reported_on,
        seeds=unique_seeds(settings),
        thinned=thinned,
        measured=measured,
    )


def within(plan: Plan, images: int) -> Plan | None:
    """The largest plan of the ladder that takes no more images; None where even the smallest takes more."""
    return next((step for step in _ladder(plan) if step.images <= images), None)


def cut_note(full: Plan, cut: Plan) -> str:
    """What was left out, in words; empty where nothing was."""
    told = {
        "checkpoints": (full.checkpoints, cut.checkpoints),
        "seeds": (len(full.seeds), len(cut.seeds)),
        "prompts to choose on": (len(full.chosen_on), len(cut.chosen_on)),
        "prompts to report on": (len(full.reported_on), len(cut.reported_on)),
        "prompts in the first round": (full.screened, cut.screened),
        "finalists": (full.finalists, cut.finalists),
    }
    changed = [f"{name} {less} of {many}" for name, (many, less) in told.items() if less != many]
    return f"to keep to the budget: {', '.join(changed)}" if changed else ""


def _ladder(plan: Plan) -> Iterator[Plan]:
    """Ever smaller plans. Seeds go first, as images of one prompt are alike; then prompts and finalists; checkpoints last,
    since one that is not looked at cannot be chosen.
    """
    yield plan
    plan = replace(plan, seeds=plan.seeds[:1])
    yield plan
    while True:
        smaller = replace(
            plan,
            finalists=max(2, plan.finalists - 1),
            screened=max(min(_LEAST_PROMPTS, plan.screened), plan.screened - 1),
            chosen_on=_fewer(plan.chosen_on),
            reported_on=_fewer(plan.reported_on),
        )
        smaller = replace(smaller, screened=min(smaller.screened, len(smaller.chosen_on)))
        if smaller == plan:
            break
        plan = smaller
        yield plan
    while plan.checkpoints > _LEAST_CHECKPOINTS:
        plan = replace(plan, checkpoints=plan.checkpoints - 1)
        yield plan


def _fewer(prompts: tuple[int, ...]) -> tuple[int, ...]:
    return prompts[: max(min(_LEAST_PROMPTS, len(prompts)), len(prompts) * 3 // 4)]


def _same_places(earlier: Round | None, each: Round) -> bool:
    return earlier is not None and (earlier.prompts, earlier.seeds) == (each.prompts, each.seeds)
