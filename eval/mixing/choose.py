"""What is sampled next, and what is advised in the end, for every pair and triple with this style.

Round by round, so that nothing is made that cannot win: first every pair's weights; then the methods with each pair's best
weights, and triples of the partners that mix best; then the methods with each triple's. Where nothing means anything there
is one round, and the default is advised.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from brushset.records import Estimate, MixCandidate, MixChoice
from brushset.spec import EvaluateSection
from eval.cells import PlannedCell, mix_cell
from eval.mixing.explain import explain, explain_default
from eval.mixing.halves import prompt_halves
from eval.mixing.measure import Sight, measure_candidate, measure_difference
from eval.mixing.rule import Contender, Decision, decide
from eval.mixing.shares import Ingredient

_OWN_HALF = (0.5, 0.25, 0.25)
"""Of a triple, besides even shares: this style as the picture's, the others as its colour."""


@dataclass(frozen=True)
class Mixing:
    """What mixes can be made of: this style first, then its partners."""

    parts: Sequence[Ingredient]
    settings: EvaluateSection

    def of(self, styles: Sequence[str]) -> list[Ingredient]:
        """The parts of these styles."""
        by_style = {part.style: part for part in self.parts}
        return [by_style[style] for style in styles]


@dataclass
class Chooser:
    """Judges the mixes of one look at them. What is asked twice is measured once."""

    mixing: Mixing
    planned: Sequence[PlannedCell]
    sight: Sight
    _decisions: dict[tuple[str, ...], Decision | None] = field(default_factory=dict)
    _candidates: dict[str, MixCandidate] = field(default_factory=dict)
    _differences: dict[tuple[str, str], Estimate] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._chosen_on, self._reported_on = prompt_halves(self.sight.style.prompts) if self.sight.style else ((), ())
        self._sight = self.sight.at(self._chosen_on)

    def next_cells(self) -> list[PlannedCell]:
        """What is worth sampling next; empty when nothing is."""
        if self.sight.blind:
            return []
        groups = mixes_of(self.planned)
        wanted = [cell for styles, cells in groups.items() for cell in self._methods(styles, cells)]
        if not any(len(styles) > 2 for styles in groups):
            wanted += self._triples()
        return wanted

    def choices(self, adapters: Mapping[str, str]) -> tuple[MixChoice, ...]:
        """What is advised of every pair and triple that was sampled. `adapters`: style → SHA-256."""
        return tuple(
            self._choice(styles, cells).model_copy(update={"adapters": {style: adapters[style] for style in styles}})
            for styles, cells in mixes_of(self.planned).items()
        )

    def _choice(self, styles: tuple[str, ...], cells: Sequence[PlannedCell]) -> MixChoice:
        contenders = self._contenders(cells)
        decision = None if self.sight.blind else self._decide(styles, cells)
        first = contenders[0].candidate
        choice = MixChoice(
            styles=styles, chosen=first, as_sum=first, decided_by="default", reason="", meaningful=False,
            candidates=tuple(each.candidate for each in contenders), encoder=self.sight.encoder,
        )  # fmt: skip
        if decision is None:
            why = self.sight.blind or f"what is left of the styles was {first.least.note}"
            return choice.model_copy(update={"reason": explain_default(first, why)})
        reported = self._reported(decision, cells)
        decided = {"chosen": decision.chosen.candidate, "as_sum": self._best_sum(contenders), "decided_by": "retention"}
        reason = explain(decision, contenders, reported)
        return choice.model_copy(update=decided | {"reason": reason, "meaningful": True, "reported": reported})

    def _best_sum(self, contenders: Sequence[Contender]) -> MixCandidate | None:
        decision = decide([each for each in contenders if each.candidate.method == "weighted"], self._difference)
        return decision.chosen.candidate if decision else None

    def _reported(self, decision: Decision, cells: Sequence[PlannedCell]) -> MixCandidate | None:
        if not self._reported_on:
            return None
        chosen = next(cell for cell in cells if cell.name == decision.chosen.cell)
        return measure_candidate(chosen, self.sight.at(self._reported_on), self.mixing.settings)

    def _decide(self, styles: tuple[str, ...], cells: Sequence[PlannedCell]) -> Decision | None:
        if styles not in self._decisions:
            self._decisions[styles] = decide(self._contenders(cells), self._difference)
        return self._decisions[styles]

    def _contenders(self, cells: Sequence[PlannedCell]) -> list[Contender]:
        return [Contender(self._candidate(cell), cell.shares) for cell in cells]

    def _candidate(self, cell: PlannedCell) -> MixCandidate:
        if cell.name not in self._candidates:
            self._candidates[cell.name] = measure_candidate(cell, self._sight, self.mixing.settings)
        return self._candidates[cell.name]

    def _difference(self, cell: str, other: str) -> Estimate:
        if (cell, other) not in self._differences:
            self._differences[cell, other] = measure_difference(self._sight, cell, other)
        return self._differences[cell, other]

    def _methods(self, styles: tuple[str, ...], cells: Sequence[PlannedCell]) -> list[PlannedCell]:
        """The group's best weights by the other methods; none where they have been sampled."""
        if any(cell.method != "weighted" for cell in cells):
            return []
        decision = self._decide(styles, cells)
        shares = decision.chosen.shares if decision else cells[0].shares
        parts = self.mixing.of(styles)
        return [mix_cell(parts, shares, method=method) for method in self.mixing.settings.mix_methods]

    def _triples(self) -> list[PlannedCell]:
        """This style with each two of the partners of which, mixed with it, most is left of the weaker."""
        if len(self.mixing.parts) < 3:
            return []
        own = self.mixing.parts[0].style
        pairs = {styles: self._decide(styles, cells) for styles, cells in mixes_of(self.planned).items()}
        ranked = sorted(pairs, key=lambda styles: -_kept(pairs[styles]))
        best = [styles[1] for styles in ranked[: self.mixing.settings.triple_partners]]
        cells = []
        for first, second in itertools.combinations(best, 2):
            ratios = (1.0, _ratio(pairs[own, first]), _ratio(pairs[own, second]))
            wanted = ((1.0,) * 3, _OWN_HALF, ratios)
            cells += [mix_cell(self.mixing.of((own, first, second)), _of_sum_one(shares)) for shares in wanted]
        return list({cell.name: cell for cell in cells}.values())


def default_triples(mixing: Mixing) -> list[PlannedCell]:
    """This style with each two of its first partners, evenly: where nothing tells which mix best."""
    own, *others = mixing.parts
    twos = itertools.combinations(others[: mixing.settings.triple_partners], 2)
    return [mix_cell([own, first, second], _of_sum_one((1, 1, 1))) for first, second in twos]


def mixes_of(planned: Sequence[PlannedCell]) -> dict[tuple[str, ...], list[PlannedCell]]:
    """The planned mixes by their styles, in the order in which they were planned."""
    groups: dict[tuple[str, ...], list[PlannedCell]] = {}
    for cell in planned:
        if cell.role == "mix":
            groups.setdefault(tuple(style for style, _ in cell.mix), []).append(cell)
    return groups


def _kept(decision: Decision | None) -> float:
    least = decision.chosen.candidate.least if decision else None
    return least.value if least and least.value is not None else float("-inf")


def _ratio(decision: Decision | None) -> float:
    """The partner's share by this style's, as the pair was chosen."""
    if decision is None:
        return 1.0
    own, other = decision.chosen.shares
    return other / own


def _of_sum_one(shares: Sequence[float]) -> tuple[float, ...]:
    return tuple(share / sum(shares) for share in shares)
