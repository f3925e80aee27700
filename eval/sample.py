"""The fixed grid, sampled: every prompt with every seed in every cell that was planned (eval/cells.py), and drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from brushset.generator import ImageJob, Sampling, create_comparison_grid
from brushset.records import Cell
from brushset.spec import EvaluateSection
from eval.aside import Aside
from eval.cells import Place, PlannedCell, grid_places
from eval.mixing.shares import method_options

if TYPE_CHECKING:
    from PIL.Image import Image

TILE_PX = 256


class Generator(Protocol):
    """What the grid asks of brushset.generator.MultiLoRAGenerator."""

    def generate_jobs(self, jobs: Sequence[ImageJob], sampling: Sampling | None = None) -> Iterator[tuple[int, Image]]:
        """(index of the job, image), as they are made."""
        ...


def sample_grid(
    generator: Generator,
    cells: Sequence[PlannedCell],
    settings: EvaluateSection,
    folder: Path,
    *,
    clip_skip: int = 1,
) -> tuple[Cell, ...]:
    """Writes images/<cell>/<prompt number>_<seed>.png below `folder`, to which the paths of the result are relative.

    All cells are sampled in one go, batch by batch across them. `clip_skip` is the training's: an adapter is looked at
    through the text layer that it was trained on.
    """
    places = grid_places(settings)
    wanted = [(cell, place) for cell in cells for place in places]
    for cell in cells:
        (folder / "images" / cell.folder).mkdir(parents=True)
    jobs = [_job(cell, place, settings.steps) for cell, place in wanted]
    with Aside() as aside:
        for index, image in generator.generate_jobs(jobs, sampling_for(settings, clip_skip)):
            cell, place = wanted[index]
            aside.save(image, folder / _file(cell, place))
    return tuple(
        Cell(
            name=cell.name,
            mix=dict(cell.mix),
            images=tuple(_file(cell, place) for place in places),
            role=cell.role,
            method=cell.method,
        )
        for cell in cells
    )


def sampling_for(settings: EvaluateSection, clip_skip: int) -> Sampling:
    """How every image of a spec's evaluation is sampled."""
    shared = ("negative_prompt", "steps", "guidance", "width", "height", "batch_size")
    return Sampling(**{name: getattr(settings, name) for name in shared}, clip_skip=clip_skip)


def _job(cell: PlannedCell, place: Place, steps: int) -> ImageJob:
    if cell.method == "weighted":
        return ImageJob(cell.prompt(place.prompt), place.seed, cell.mix)
    options = method_options(cell.method, len(cell.mix), steps)
    return ImageJob(cell.prompt(place.prompt), place.seed, cell.mix, method=cell.method, options=options)


def _file(cell: PlannedCell, place: Place) -> str:
    return f"images/{cell.folder}/{place.file}"


def draw_grid(cells: Sequence[Cell], settings: EvaluateSection, folder: Path) -> Image:
    """A column a cell, a row a place of the prompts that are shown, both labelled; images at most 256 pixels wide. Paths are
    below `folder`.
    """
    shown = [(at, place) for at, place in enumerate(grid_places(settings)) if place.prompt_index < len(settings.shown)]
    rows = [f"{place.prompt} (seed {place.seed})" for _, place in shown]
    columns = {cell.name: [tile(folder / cell.images[at]) for at, _ in shown] for cell in cells}
    return create_comparison_grid(columns, row_labels=rows)


def tile(path: Path) -> Image:
    """A picture of a sheet: at most 256 pixels wide and high."""
    from PIL import Image

    with Image.open(path) as image:
        small = image.convert("RGB")
    small.thumbnail((TILE_PX, TILE_PX))
    return small
