"""The fixed grid, sampled: every prompt with every seed in every cell that was planned (eval/cells.py), and drawn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from brushset.generator import ImageJob, Sampling, create_comparison_grid
from brushset.records import Cell
from brushset.spec import SHOWN_PROMPTS, EvaluateSection
from eval.aside import Aside
from eval.cells import Place, PlannedCell
from eval.frames import Frames
from eval.mixing.shares import method_options
from eval.preprocess import open_rgb

if TYPE_CHECKING:
    from PIL.Image import Image

TILE_PX = 256


class Generator(Protocol):
    """What the grid asks of brushset.generator.MultiLoRAGenerator."""

    def generate_jobs(self, jobs: Sequence[ImageJob], sampling: Sampling | None = None) -> Iterator[tuple[int, Image]]:
        """(index of the job, image), as they are made."""
        ...


Wanted = tuple[PlannedCell, Place]
"""An image: what is drawn, and at which place."""


def sample_grid(
    generator: Generator,
    slices: Iterable[Sequence[Wanted]],
    settings: EvaluateSection,
    folder: Path,
    *,
    frames: Frames,
    clip_skip: int = 1,
) -> None:
    """Writes images/<cell>/<prompt number>_<seed>.png below `folder`; what looks at them gets them from `frames`.

    All images of a slice are sampled in one go, batch by batch across its cells; the next slice is asked for when they are
    made. `clip_skip` is the training's: an adapter is looked at through the text layer that it was trained on.
    """
    sampling = sampling_for(settings, clip_skip)
    with Aside() as aside:
        for wanted in slices:
            for cell in {cell.folder for cell, _ in wanted}:
                (folder / "images" / cell).mkdir(parents=True, exist_ok=True)
            jobs = [_job(cell, place, settings.steps) for cell, place in wanted]
            for index, image in generator.generate_jobs(jobs, sampling):
                path = folder / _file(*wanted[index])
                frames.put(path, image)
                aside.save(image, path)


def sampled_cells(planned: Sequence[PlannedCell], places: Sequence[Place]) -> tuple[Cell, ...]:
    """The cells as they were sampled at these places, with paths below the stage's folder."""
    return tuple(
        Cell(
            name=cell.name,
            mix=dict(cell.mix),
            images=tuple(_file(cell, place) for place in places),
            role=cell.role,
            method=cell.method,
        )
        for cell in planned
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


def draw_grid(cells: Sequence[Cell], places: Sequence[Place], folder: Path) -> Image:
    """A column a cell, a row a place of the first few prompts, both labelled; images at most 256 pixels wide. Paths are
    below `folder`.
    """
    prompts = list(dict.fromkeys(place.prompt_index for place in places))[:SHOWN_PROMPTS]
    shown = [(at, place) for at, place in enumerate(places) if place.prompt_index in prompts]
    rows = [f"{place.prompt} (seed {place.seed})" for _, place in shown]
    columns = {cell.name: [tile(folder / cell.images[at]) for at, _ in shown] for cell in cells}
    return create_comparison_grid(columns, row_labels=rows)


def tile(path: Path) -> Image:
    """A picture of a sheet: at most 256 pixels wide and high."""
    small = open_rgb(path)
    small.thumbnail((TILE_PX, TILE_PX))
    return small
