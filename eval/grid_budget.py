"""What the grid will take, said before it starts, and fewer prompts where minutes were granted that it would exceed.

`[evaluate] budget_minutes` are those of choosing and judging together; the speed is the one that choosing had. Prompts are
left out evenly, never cells: what is compared stays comparable, and intervals say how much wider they are.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from brushset.protocols import Emit
from brushset.records import Choice
from brushset.spec import EvaluateSection
from eval.cells import unique_seeds

LEAST_PROMPTS = 4


@dataclass
class GridBudget:
    """Minutes that choosing left. `per_image_s` is what an image took there, looked at; 0 where none was made."""

    minutes: float | None
    per_image_s: float
    notes: list[str] = field(default_factory=list)
    _started: float = field(default_factory=time.monotonic)

    @classmethod
    def after(cls, choice: Choice | None, granted: float | None) -> GridBudget:
        """What is left of the minutes granted; None: nothing was chosen here, so that no speed is known."""
        if choice is None:
            return cls(granted, 0.0)
        left = None if granted is None else max(0.0, granted - choice.seconds / 60)
        return cls(left, choice.seconds / choice.images if choice.images else 0.0)

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
            told = f"to keep to the budget: {kept} of {len(prompts)} prompts"
            self.notes.append(told)
            emit("note", text=told)
        # Evenly, and the first ones that people are shown stay first.
        chosen = sorted({round(number * (len(prompts) - 1) / max(1, kept - 1)) for number in range(kept)})
        return settings.model_copy(update={"prompts": tuple(prompts[number] for number in chosen)})

    def has_time_for(self, images: int, emit: Emit) -> bool:
        """Whether a further round of so many images may begin."""
        if self.minutes is None or not self.per_image_s:
            return True
        if time.monotonic() - self._started + images * self.per_image_s <= 60 * self.minutes:
            return True
        told = "to keep to the budget: other methods and triples of mixes were not tried"
        self.notes.append(told)
        emit("note", text=told)
        return False
