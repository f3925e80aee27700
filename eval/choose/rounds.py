"""The search: rounds of ever fewer candidates on ever more images, until one is chosen, and then looked at on new prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from brushset.protocols import Emit
from brushset.records import Candidate
from brushset.spec import EvaluateSection
from eval.choose.candidates import Lineup, Way
from eval.choose.measure import Looked, unmeasured
from eval.choose.plan import NEIGHBOURS, Plan, Round
from eval.choose.rule import Bounds, Pick, choose, front, is_broken, is_hopeless, judge, survivors, way
from eval.choose.studio import Studio, places_of

Look = Callable[[Sequence[Way], Sequence[int], Sequence[int]], Looked]
"""Ways, prompts, seeds → what is seen of them, of the base and, where they were made, of its words."""


@dataclass
class Search:
    """One search. `standings` are the candidates as they were measured last."""

    plan: Plan
    lineup: Lineup
    studio: Studio
    look: Look
    settings: EvaluateSection
    emit: Emit
    standings: dict[Way, Candidate] = field(default_factory=dict)
    history: list[tuple[Round, list[Candidate], Looked]] = field(default_factory=list)

    @property
    def bounds(self) -> Bounds:
        """Of the spec."""
        return Bounds.of(self.settings)

    def run(self, affordable: Callable[[], float]) -> None:
        """All rounds, as far as images are left. `affordable` is how many may still be made, those of the report taken off."""
        ways = self.lineup.first(self.plan.checkpoints)
        rounds = self.plan.rounds()
        for number, each in enumerate(rounds, start=1):
            found, looked = self._measure(ways, each, number)
            self.history.append((each, found, looked))
            if number < len(rounds):
                ways = self._next(found, looked, (each, rounds[number]), affordable)
            if not ways:
                return
        more = self._second_string(ways, rounds[-1], affordable) if self.plan.measured else []
        if more:
            self.emit("note", text="nobody of the last round is within all bounds; those that are likely to be come in")
            self.history.append((rounds[-1], *self._measure([*ways, *more], rounds[-1], len(rounds) + 1)))

    def pick(self) -> Pick | None:
        """The choice of the last round."""
        _, found, looked = self.history[-1]
        return choose(found, self.bounds, self._beats(looked))

    def _second_string(self, ways: Sequence[Way], last: Round, affordable: Callable[[], float]) -> list[Way]:
        """Who comes in where nobody of the last round is feasible: of those that dropped out for keeping less of the style,
        the ones that may be.
        """
        if any(each.feasible is not False for each in self.history[-1][1]):
            return []
        rest = [each for key, each in self.standings.items() if key not in ways and not is_hopeless(each, self.bounds)]
        most = int(min(last.ways, affordable() / last.places))
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

    def _measure(self, ways: Sequence[Way], each: Round, number: int) -> tuple[list[Candidate], Looked]:
        places = places_of(each.prompts, each.seeds, self.settings.prompts)
        self.emit("note", text=f"round {number}: {len(ways)} candidates on {each.places} images each")
        self.studio.make(places, ways, [self.studio.base])
        looked = self.look(self.studio.whole(ways), each.prompts, each.seeds)
        found = [self._candidate(one, looked, number, each.places) for one in ways]
        self.standings.update({way(one): one for one in found})
        return found, looked

    def _candidate(self, one: Way, looked: Looked, number: int, images: int) -> Candidate:
        path = self.lineup.files[one.epoch].path
        if one in self.studio.broken:
            return unmeasured(one, path, number, self.studio.broken[one])
        found = Candidate(
            weights=path, epoch=one.epoch, weight=one.weight, round=number, images=images, feasible=None,
            **looked.estimates(self.studio.cell(one).name),
        )  # fmt: skip
        return judge(found, self.bounds)

    def _next(
        self, found: Sequence[Candidate], looked: Looked, pair: tuple[Round, Round], affordable: Callable[[], float]
    ) -> list[Way]:
        """Who is in the next round; nobody where the budget is spent."""
        each, after = pair
        most = int(min(after.ways, affordable() / max(1, after.places - each.places)))
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
