"""The grid in rounds: sampled, looked at, and sampled further where what was seen makes more worth making."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from brushset.partners import Partner
from brushset.pipeline import StageContext
from brushset.records import Cell, Trained
from eval.cells import Place, PlannedCell, grid_places, ingredient, own_ingredient, plan_cells
from eval.frames import Frames
from eval.grid_budget import GridBudget
from eval.layout import layout_of
from eval.look import Extractor, Pictures, look_at, look_further
from eval.metric import ExtractorName
from eval.mixing.choose import Chooser, Mixing, default_triples
from eval.mixing.measure import find_sight
from eval.references import Gridded, find_pictures
from eval.sample import Wanted, sampled_cells
from eval.seen import Seen
from eval.table import STYLE_ENCODERS

Sample = Callable[[Iterable[Sequence[Wanted]]], None]
"""Makes the images of one slice after the other."""


@dataclass(frozen=True)
class Sampled:
    """All cells, as planned and as made, and what is seen of them at which places."""

    planned: tuple[PlannedCell, ...]
    cells: tuple[Cell, ...]
    places: tuple[Place, ...]
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
    frames: Frames

    def sample_in_rounds(self, sample: Sample) -> Sampled:
        """As many rounds as choosing mixes takes, three at most; one where nothing could be chosen."""
        planned = plan_cells(self.context.spec, self.partners)
        if not self._could_mean_anything:
            planned += default_triples(self._mixing)
        made = self._look(tuple(planned), self._sample_places(sample, planned))
        while further := made.chooser.next_cells():
            drawn = self._sample_cells(sample, further, made.places)
            if drawn:
                made = self._look((*made.planned, *drawn), made.places, made.seen)
            if len(drawn) < len(further):
                break
        return made

    def _sample_places(self, sample: Sample, planned: Sequence[PlannedCell]) -> tuple[Place, ...]:
        """All cells at as many places as there is time for; returns which."""
        settings, drawn = self.context.spec.evaluate, set[int]()

        def slices() -> Iterator[list[Wanted]]:
            for some in self.budget.prompts_within(settings, len(planned), self.context.emit):
                drawn.update(some)
                yield [
                    (cell, place) for cell in planned for place in grid_places(settings) if place.prompt_index in some
                ]

        sample(slices())
        return tuple(place for place in grid_places(settings) if place.prompt_index in drawn)

    def _sample_cells(
        self, sample: Sample, further: Sequence[PlannedCell], places: Sequence[Place]
    ) -> list[PlannedCell]:  # fmt: skip
        """As many further cells as there is time for, all at these places; returns which."""
        drawn: list[PlannedCell] = []

        def slices() -> Iterator[list[Wanted]]:
            for some in self.budget.cells_within(further, len(places), self.context.emit):
                drawn.extend(some)
                yield [(cell, place) for cell in some for place in places]

        sample(slices())
        return drawn

    def _look(
        self, planned: tuple[PlannedCell, ...], places: tuple[Place, ...],
        before: Mapping[ExtractorName, Seen] | None = None,
    ) -> Sampled:  # fmt: skip
        spec, emit = self.context.spec, self.context.emit
        cells = sampled_cells(planned, places)
        layout = layout_of(cells, spec.name, spec.evaluate.weight)
        pictures = find_pictures(self.context, layout, Gridded(cells, places, self.frames), self.partners)
        if before is None:
            seen = look_at(pictures, self.extractors, emit)
        else:
            seen = look_further(before, pictures, self.extractors, emit)
        sight = find_sight(seen, self.extractors, base_random=self.context.get(Trained).base_random)
        return Sampled(planned, cells, places, pictures, seen, Chooser(self._mixing, planned, sight))

    @property
    def _mixing(self) -> Mixing:
        spec = self.context.spec
        return Mixing([own_ingredient(spec), *map(ingredient, self.partners)], spec.evaluate)

    @property
    def _could_mean_anything(self) -> bool:
        real = any(self.extractors[name].identity.meaningful for name in STYLE_ENCODERS)
        return real and not self.context.get(Trained).base_random
