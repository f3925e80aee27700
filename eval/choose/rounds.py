"""The search: rounds of ever fewer candidates on ever more images, until one is chosen, and then looked at on new prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from brushset.protocols import Emit
from brushset.records import Candidate
from brushset.spec import EvaluateSection
from eval.cells import BASE_CELL
from eval.choose.candidates import Lineup, Way
from eval.choose.measure import Looked, unmeasured
from eval.choose.plan import NEIGHBOURS, Plan, Round
from eval.choose.rule import Bounds, Pick, choose, front, is_broken, is_hopeless, judge, survivors, way
from eval.choose.studio import Asked, Studio, draw_within
from eval.pace import Pace

Look = Callable[[Sequence[Way], Sequence[int], Sequence[int]], Looked]
"""Ways, prompts, seeds → what is seen of them, of the base and, where they were made, of its words."""


@dataclass
class Search:
    """One search. `standings` are the candidates as they were measured last; `history` the rounds as they were drawn."""

    plan: Plan
    lineup: Lineup
    studio: Studio
    look: Look
    settings: EvaluateSection
    emit: Emit
    pace: Pace
    standings: dict[Way, Candidate] = field(default_factory=dict)
    history: list[tuple[Round, list[Candidate], Looked]] = field(default_factory=list)

    @property
    def bounds(self) -> Bounds:
        """Of the spec."""
        return Bounds.of(self.settings)

    @property
    def chosen_on(self) -> tuple[int, ...]:
        """The prompts of the last round."""
        return self.history[-1][0].prompts

    def run(self) -> None:
        """All rounds, as far as minutes are left."""
        ways = self.lineup.first(self.plan.checkpoints)
        rounds = self.plan.rounds()
        for number, each in enumerate(rounds, start=1):
            self._measure(ways, each, number)
            if number < len(rounds):
                ways = self._next(rounds[number])
            if not ways:
                return
        last = self.history[-1][0]
        more = self._second_string(ways, last) if self.plan.measured else []
        if more:
            self.emit("note", text="nobody of the last round is within all bounds; those that are likely to be come in")
            self._measure([*ways, *more], last, len(rounds) + 1)

    def pick(self) -> Pick | None:
        """The choice of the last round."""
        _, found, looked = self.history[-1]
        return choose(found, self.bounds, self._beats(looked))

    def _second_string(self, ways: Sequence[Way], last: Round) -> list[Way]:
        """Who comes in where nobody of the last round is feasible: of those that dropped out for keeping less of the style,
        the ones that may be.
        """
        if any(each.feasible is not False for each in self.history[-1][1]):
            return []
        rest = [each for key, each in self.standings.items() if key not in ways and not is_hopeless(each, self.bounds)]
        most = int(min(last.ways, self._affordable() / last.places))
        shrink = 0.5  # of few prompts an interval is some twice as wide as of all
        likely = survivors(rest, self.bounds, most, lambda *_: False, shrink=shrink)
        return [way(each) for each in likely]

    def candidates(self) -> tuple[Candidate, ...]:
        """All, in order, with the front of their round marked."""
        rounds = sorted({each.round for each in self.standings.values()})
        leading = {
            way(each)
            for number in rounds
            for each in front([one for one in self.standings.values() if one.round == number])
        }
        return tuple(
            each.model_copy(update={"on_front": key in leading}) for key, each in sorted(self.standings.items())
        )

    def _measure(self, ways: Sequence[Way], planned: Round, number: int) -> None:
        """Draws a round, as far as it may, and looks at it."""
        self.emit("note", text=f"round {number}: {len(ways)} candidates on {planned.places} images each")
        prompts = draw_within(
            self.studio, self.pace, Asked(f"round {number}", planned.prompts, planned.seeds, ways, (BASE_CELL,)),
            first=[number for number in planned.prompts if number in self.plan.shown], reserved=self._reserved,
        )  # fmt: skip
        each = replace(planned, prompts=prompts)
        looked = self.look(self.studio.whole(ways), each.prompts, each.seeds)
        found = [self._candidate(one, looked, number, each.places) for one in ways]
        self.standings.update({way(one): one for one in found})
        self.history.append((each, found, looked))

    @property
    def _reserved(self) -> int:
        """Images that the report takes: of the chosen one, the base, and the base with words."""
        return 3 * len(self.plan.reported_on) * len(self.plan.seeds) if self.plan.measured else 0

    def _affordable(self) -> float:
        return self.pace.affordable(self._reserved)

    def _candidate(self, one: Way, looked: Looked, number: int, images: int) -> Candidate:
        path = self.lineup.files[one.epoch].path
        if one in self.studio.broken:
            return unmeasured(one, path, number, self.studio.broken[one])
        found = Candidate(
            weights=path, epoch=one.epoch, weight=one.weight, round=number, images=images, feasible=None,
            **looked.estimates(self.studio.cell(one).name),
        )  # fmt: skip
        return judge(found, self.bounds)

    def _next(self, after: Round) -> list[Way]:
        """Who is in the next round; nobody where the budget is spent."""
        each, found, looked = self.history[-1]
        most = int(min(after.ways, self._affordable() / max(1, after.places - each.places)))
        if most < min(2, after.ways):
            self.emit("note", text="the budget is spent; the choice is made by what was seen so far")
            return []
        shrink = math.sqrt(len(each.prompts) / len(after.prompts))
        alive = [one for one in found if not is_broken(one)]
        leading = survivors(alive, self.bounds, most, self._beats(looked), shrink=shrink)
        ways = [way(one) for one in leading]
        if not self.plan.thinned or len(self.history) > 1:
            return ways
        beside = self.lineup.neighbours(ways[:2], self.standings)[:NEIGHBOURS]
        return [*ways[: max(2, most - len(beside))], *beside]

    def _beats(self, looked: Looked) -> Callable[[Way, Way], bool]:
        return lambda one, other: looked.beats(self.studio.cell(one).name, self.studio.cell(other).name)
