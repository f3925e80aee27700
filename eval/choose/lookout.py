"""From a round's images to what every extractor sees of them; vectors of images seen before are not made again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from brushset.pipeline import StageContext
from brushset.records import Prepared
from eval.cells import BASE_CELL, Place, PlannedCell, plain_prompt
from eval.choose.candidates import Way
from eval.choose.measure import LOOKED_THROUGH, Looked, Ruler, find_ruler
from eval.choose.studio import Studio, places_of
from eval.layout import Layout
from eval.look import Extractor, Missing, Pictures, look_at
from eval.metric import ExtractorName
from eval.references import image_files
from eval.room import has_room_for_both, release
from eval.table import STYLE_ENCODERS


@dataclass
class Lookout:
    """The extractors and what they look at. `why_not` says why style is not measured, where `ruler` is None."""

    context: StageContext
    studio: Studio
    extractors: dict[ExtractorName, Extractor]
    one_seed: bool = False
    ruler: Ruler | None = None
    why_not: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def real(self) -> bool:
        """Whether no network is made up; one that is missing measures nothing, and lies of nothing."""
        found = [self.extractors[name] for name in LOOKED_THROUGH]
        return all(isinstance(each, Missing) or each.identity.meaningful for each in found)

    @property
    def could_measure_style(self) -> bool:
        """Whether an encoder of style is there at all; sets `why_not` where none is."""
        missing = [
            found.identity.note for name in STYLE_ENCODERS if isinstance(found := self.extractors[name], Missing)
        ]
        if len(missing) == len(STYLE_ENCODERS):
            self.why_not = "; ".join(dict.fromkeys(missing))
        return not self.why_not

    def find_ruler(self, prompts: Sequence[int], seeds: Sequence[int]) -> None:
        """Which encoder measures style, by the references and images of the base, which have to be there."""
        places = places_of(prompts, seeds, self.context.spec.evaluate.prompts)
        found = find_ruler(self._see([BASE_CELL], places).seen, self.extractors)
        if isinstance(found, str):
            self.why_not = found
        else:
            self.ruler = found
            self.notes += [f"{each}; style is measured by {found.id}" for each in found.unfit]

    def look(self, ways: Sequence[Way], prompts: Sequence[int], seeds: Sequence[int], *, words: bool = False) -> Looked:
        """What is seen of these ways, of the base, and of the base with style words; all images have to be there."""
        places = places_of(prompts, seeds, self.context.spec.evaluate.prompts)
        baselines = [BASE_CELL, *([self.studio.words] if words else [])]
        return self._see([*baselines, *map(self.studio.cell, ways)], places)

    def _see(self, cells: Sequence[PlannedCell], places: Sequence[Place]) -> Looked:
        spec, run, prepared = self.context.spec, self.context.run, self.context.get(Prepared)
        most = spec.evaluate.references
        layout = Layout(style=spec.name, main="")
        pictures = Pictures(
            layout=layout,
            size=(spec.evaluate.width, spec.evaluate.height),
            cells={cell.name: [self.studio.file(cell, place) for place in places] for cell in cells},
            trained=image_files(run, prepared.images, most),
            held_out=image_files(run, prepared.heldout, most),
            others={},
            prompts=[place.prompt_index for place in places],
            texts=[plain_prompt(place.prompt, spec) for place in places],
            frames=self.studio.frames,
        )
        apart = not has_room_for_both()
        if apart:
            self.studio.release()
        seen = look_at(pictures, self.extractors, self.context.emit)
        if apart:
            release(self.extractors.values())
        return Looked(seen, self.extractors, self.ruler, layout, self.one_seed)
