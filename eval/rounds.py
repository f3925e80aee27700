"""The grid in rounds: sampled, looked at, and sampled further where what was seen makes more worth making."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from brushset.partners import Partner
from brushset.pipeline import StageContext
from brushset.records import Cell, Trained
from eval.cells import PlannedCell, grid_places, ingredient, own_ingredient, plan_cells
from eval.grid_budget import GridBudget
from eval.layout import layout_of
from eval.look import Extractor, Pictures, look_at, look_further
from eval.metric import ExtractorName
from eval.mixing.choose import Chooser, Mixing, default_triples
from eval.mixing.measure import find_sight
from eval.references import find_pictures
from eval.seen import Seen
from eval.table import STYLE_ENCODERS

Sample = Callable[[Sequence[PlannedCell]], Sequence[Cell]]
"""Makes the images of cells; paths in the cells are below the stage's folder."""


@dataclass(frozen=True)
class Sampled:
    """All cells, as planned and as made, with what is seen of them."""

    planned: tuple[PlannedCell, ...]
    cells: tuple[Cell, ...]
    pictures: Pictures
    seen: dict[ExtractorName, Seen]
    chooser: Chooser


@dataclass(frozen=True)
class Looking:
    """What a grid is looked at with, and for whom."""

    context: StageContext
    partners: Sequence[Partner]
    extractors: Mapping[ExtractorName, Extractor]
    budget: GridBudget

    def sample_in_rounds(self, sample: Sample) -> Sampled:
        """As many rounds as choosing mixes takes, three at most; one where nothing could be chosen."""
        planned = plan_cells(self.context.spec, self.partners)
        if not self._could_mean_anything:
            planned += default_triples(self._mixing)
        made = self._look(tuple(planned), tuple(sample(planned)))
        places = len(grid_places(self.context.spec.evaluate))
        while further := made.chooser.next_cells():
            if not self.budget.has_time_for(len(further) * places, self.context.emit):
                break
            made = self._look((*made.planned, *further), (*made.cells, *sample(further)), made.seen)
        return made

    def _look(
        self, planned: tuple[PlannedCell, ...], cells: tuple[Cell, ...],
        before: Mapping[ExtractorName, Seen] | None = None,
    ) -> Sampled:  # fmt: skip
        spec, emit = self.context.spec, self.context.emit
        layout = layout_of(cells, spec.name, spec.evaluate.weight)
        pictures = find_pictures(self.context, layout, cells, self.partners)
        if before is None:
            seen = look_at(pictures, self.extractors, emit)
        else:
            seen = look_further(before, pictures, self.extractors, emit)
        sight = find_sight(seen, self.extractors, base_random=self.context.get(Trained).base_random)
        return Sampled(planned, cells, pictures, seen, Chooser(self._mixing, planned, sight))

    @property
    def _mixing(self) -> Mixing:
        spec = self.context.spec
        return Mixing([own_ingredient(spec), *map(ingredient, self.partners)], spec.evaluate)

    @property
    def _could_mean_anything(self) -> bool:
        real = any(self.extractors[name].identity.meaningful for name in STYLE_ENCODERS)
        return real and not self.context.get(Trained).base_random
