"""What the grid will take, said before it starts, and fewer prompts where minutes were granted that it would exceed.

`[evaluate] budget_minutes` are those of choosing and judging together; the speed is at first the one that choosing had, then
the grid's own. Of the first round prompts are left out, evenly, never cells: what is compared stays comparable, and intervals
say how much wider they are. Of a further round whole cells are, since its cells are held against those of the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from brushset.protocols import Emit
from brushset.records import Choice
from brushset.spec import EvaluateSection
from eval.cells import unique_seeds
from eval.pace import LEAST_PROMPTS, Pace

T = TypeVar("T")


@dataclass
class GridBudget(Pace):
    """The pace of the grid, and the minutes that choosing left."""

    @classmethod
    def after(cls, choice: Choice | None, granted: float | None) -> GridBudget:
        """What is left of the minutes granted; None: nothing was chosen here, so that no speed is known."""
        if choice is None:
            return cls(granted)
        left = None if granted is None else max(0.0, granted - choice.seconds / 60)
        return cls(left, choice.seconds / choice.images if choice.images else 0.0)

    @property
    def told(self) -> str:
        """What is kept to, in words."""
        return f"the budget, of which choosing left {self.minutes:.2g} minutes"

    def fit(self, settings: EvaluateSection, cells: int, emit: Emit) -> EvaluateSection:
        """The settings with as many prompts as there is time for, 4 at least; says what it will take."""
        seeds, prompts = len(unique_seeds(settings)), settings.prompts
        images = cells * len(prompts) * seeds
        minutes = images * self.per_image_s / 60
        known = f", about {minutes:.1f} minutes" if self.per_image_s else ""
        emit("note", text=f"{cells} cells of {len(prompts) * seeds} images: {images} images{known}")
        if self.minutes is None or not self.per_image_s or minutes <= self.minutes:
            return settings
        affordable = int(60 * self.minutes / self.per_image_s / (cells * seeds))
        kept = min(len(prompts), max(LEAST_PROMPTS, affordable))
        if kept < len(prompts):
            what = f"{len(prompts) - kept} of {len(prompts)} prompts are left out"
            emit("note", text=self.left_out(what))
        # Evenly, and the first ones that people are shown stay first.
        chosen = sorted({round(number * (len(prompts) - 1) / max(1, kept - 1)) for number in range(kept)})
        return settings.model_copy(update={"prompts": tuple(prompts[number] for number in chosen)})

    def prompts_within(self, settings: EvaluateSection, cells: int, emit: Emit) -> Iterator[list[int]]:
        """The prompts of the first round, by number, in slices as far as there is time; says which share was left out."""
        a_prompt, drawn = cells * len(unique_seeds(settings)), 0
        for some in self.slices(range(len(settings.prompts)), lambda some: a_prompt * len(some)):
            yield some
            drawn += len(some)
        if drawn < len(settings.prompts):
            what = f"{len(settings.prompts) - drawn} of {len(settings.prompts)} prompts were not drawn"
            emit("note", text=self.left_out(what))

    def cells_within(self, cells: Sequence[T], images: int, emit: Emit) -> Iterator[list[T]]:
        """The cells of a further round, of so many images each, as far as there is time; says how many were left out."""
        if self.minutes is None:
            yield list(cells)
            return
        for done, cell in enumerate(cells):
            if images > self.affordable():
                what = f"{len(cells) - done} of {len(cells)} other methods and triples of mixes were not tried"
                emit("note", text=self.left_out(what))
                return
            yield [cell]
