"""The fixed grid: every prompt with every seed, once by the base, once by the adapter, once by each pair.

Same prompt and seed in every cell, so that differences pair: what one looks at is the adapter, not the luck of a
seed. Triggers stand first in the prompts of the cells whose adapters they call, and in no others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from brushset.generator import Mix, Sampling, create_comparison_grid, mix_label
from brushset.records import Cell
from brushset.spec import EvaluateSection, StyleSpec
from eval.partners import Partner

if TYPE_CHECKING:
    from PIL.Image import Image

TILE_PX = 256


class Generator(Protocol):
    """What the grid asks of brushset.generator.MultiLoRAGenerator."""

    def generate_each(
        self, wanted: Sequence[tuple[str, int]], lora_configs: Mix = (), sampling: Sampling | None = None
    ) -> list[Image]:
        """One image for each (prompt, seed), in order."""
        ...


@dataclass(frozen=True)
class PlannedCell:
    """A cell before it is sampled."""

    mix: Mix
    triggers: tuple[str, ...]

    @property
    def name(self) -> str:
        """What heads the cell's column: "cartoon 0.5 + anime 0.5"."""
        return mix_label(self.mix)

    @property
    def folder(self) -> str:
        """The name without what a shell would stumble over: "cartoon_0.5+anime_0.5"."""
        return self.name.replace(" + ", "+").replace(" ", "_")

    def prompt(self, content: str) -> str:
        """The content with the triggers in front."""
        return ", ".join([*self.triggers, content])


@dataclass(frozen=True)
class Place:
    """A row of the grid: one prompt with one seed."""

    prompt_index: int
    prompt: str
    seed: int

    @property
    def file(self) -> str:
        """The image's name in every cell's folder."""
        return f"{self.prompt_index}_{self.seed}.png"


def plan_cells(spec: StyleSpec, partners: Sequence[Partner]) -> list[PlannedCell]:
    """The cells in the order in which they are shown: base, the adapter alone, the pairs."""
    own, other = spec.evaluate.pair_weights
    return [
        PlannedCell((), ()),
        PlannedCell(((spec.name, spec.evaluate.weight),), (spec.trigger,)),
        *(
            PlannedCell(((spec.name, own), (partner.style, other)), (spec.trigger, partner.trigger))
            for partner in partners
        ),
    ]


def grid_places(settings: EvaluateSection) -> list[Place]:
    """The rows: prompts in their order, under each its seeds."""
    return [
        Place(index, prompt, seed) for index, prompt in enumerate(settings.prompts) for seed in unique_seeds(settings)
    ]


def unique_seeds(settings: EvaluateSection) -> tuple[int, ...]:
    """The seeds in their order, each once."""
    return tuple(dict.fromkeys(settings.seeds))


def sample_grid(
    generator: Generator,
    cells: Sequence[PlannedCell],
    settings: EvaluateSection,
    folder: Path,
    *,
    clip_skip: int = 1,
) -> tuple[Cell, ...]:
    """Writes images/<cell>/<prompt number>_<seed>.png below `folder`, to which the paths of the result are relative.

    `clip_skip` is the training's: an adapter is looked at through the text layer that it was trained on.
    """
    places = grid_places(settings)
    shared = ("negative_prompt", "steps", "guidance", "width", "height", "batch_size")
    sampling = Sampling(**{name: getattr(settings, name) for name in shared}, clip_skip=clip_skip)
    done = []
    for cell in cells:
        target = folder / "images" / cell.folder
        target.mkdir(parents=True)
        wanted = [(cell.prompt(place.prompt), place.seed) for place in places]
        for place, image in zip(places, generator.generate_each(wanted, cell.mix, sampling), strict=True):
            image.save(target / place.file)
        paths = tuple(f"images/{cell.folder}/{place.file}" for place in places)
        done.append(Cell(name=cell.name, mix=dict(cell.mix), images=paths))
    return tuple(done)


def draw_grid(cells: Sequence[Cell], settings: EvaluateSection, folder: Path) -> Image:
    """A column a cell, a row a place, both labelled; images at most 256 pixels wide. Paths are below `folder`."""
    rows = [f"{place.prompt} (seed {place.seed})" for place in grid_places(settings)]
    columns = {cell.name: [_tile(folder / path) for path in cell.images] for cell in cells}
    return create_comparison_grid(columns, row_labels=rows)


def _tile(path: Path) -> Image:
    from PIL import Image

    with Image.open(path) as image:
        small = image.convert("RGB")
    small.thumbnail((TILE_PX, TILE_PX))
    return small
