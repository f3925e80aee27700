"""Whom a halving trains longer, as the runs come in: scores read from the run folders, the rule from brushset.sweeps.halving."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from brushset.cli.sweeps.members import Member, at_rung
from brushset.paths import RunPaths
from brushset.protocols import Emit, Standing
from brushset.sweeps.halving import choose_promotions
from brushset.sweeps.scores import RunScore, read_score

_INFEASIBLE = 1e6  # a run that breaks a bound stands below every one that does not


class Climb:
    """`members` are trained to their ends; `runs` are those that were begun, on whichever rung, which `begin` adds to."""

    def __init__(
        self,
        members: Sequence[Member],
        runs: Mapping[RunPaths, Member],
        rungs: int,
        begin: Callable[[Member], RunPaths],
        emit: Emit,
    ) -> None:
        self._whole = {member.label: member for member in members}
        self._runs, self._rungs, self._begin, self._emit = runs, rungs, begin, emit
        self._scores: dict[RunPaths, RunScore | None] = {}
        self._told = False

    def follow(self, standings: Mapping[RunPaths, Standing]) -> Sequence[RunPaths]:
        """The runs that are to be begun now."""
        if self._rungs == 1:
            return ()
        over = all(each.over for each in standings.values())
        scores: list[dict[str, float]] = [{} for _ in range(self._rungs)]
        started: list[set[str]] = [set() for _ in range(self._rungs)]
        for run, standing in standings.items():
            member = self._runs[run]
            started[member.rung].add(member.label)
            if standing.state == "finished" and (value := self._value(run)) is not None:
                scores[member.rung][member.label] = value
        if over and standings and not any(scores) and not self._told:
            self._told = True
            self._emit(
                "warning", text=f"halving ends at the first rung: no run has a score ({self._why_not(standings)})"
            )
        chosen = choose_promotions(scores, started, over=over)
        return [self._begin(at_rung(self._whole[label], rung, self._rungs)) for label, rung in chosen]

    def _value(self, run: RunPaths) -> float | None:
        if run not in self._scores:
            self._scores[run] = read_score(run)
        score = self._scores[run]
        if score is None or score.ranked_by is None:
            return None
        return score.ranked_by if score.feasible else score.ranked_by - _INFEASIBLE

    def _why_not(self, standings: Mapping[RunPaths, Standing]) -> str:
        notes = [score.reported.note for run in standings if (score := self._scores.get(run)) and score.reported.note]
        return notes[0] if notes else "none was trained"
