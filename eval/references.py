"""Which pictures are looked at: the grid's, the style's own, held out or trained on, and those of the styles it is mixed with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from brushset.errors import InputError
from brushset.files import sha256_json
from brushset.partners import Partner, find_partners, partner_digest
from brushset.paths import RunPaths
from brushset.pipeline import StageContext
from brushset.records import Cell, Prepared, PreparedImage
from brushset.spec import StyleSpec
from brushset.stage_records import load_result
from eval.cells import Place, plain_prompt
from eval.frames import Frames
from eval.layout import LEAST_HELD_OUT, Layout

if TYPE_CHECKING:
    from eval.look import Pictures


@dataclass(frozen=True)
class Gridded:
    """The grid as far as it was drawn. `frames` still has what was made last."""

    cells: Sequence[Cell]
    places: Sequence[Place]
    frames: Frames


def find_pictures(context: StageContext, layout: Layout, grid: Gridded, partners: Sequence[Partner]) -> Pictures:
    """The files, all to be fitted to the size that the generator makes.

    Raises:
        InputError: there is no prepared image.
    """
    from eval.look import Pictures

    prepared, settings = context.get(Prepared), context.spec.evaluate
    if not prepared.images:
        raise InputError(f"{context.run.images}: no prepared image to hold the adapter's images against")
    return Pictures(
        layout=layout,
        size=(settings.width, settings.height),
        cells={cell.name: [context.workdir / path for path in cell.images] for cell in grid.cells},
        trained=image_files(context.run, prepared.images, settings.references),
        held_out=image_files(context.run, prepared.heldout, settings.references),
        others={partner.style: partner_references(partner, settings.references) for partner in partners},
        prompts=[place.prompt_index for place in grid.places],
        texts=[plain_prompt(place.prompt, context.spec) for place in grid.places],
        frames=grid.frames,
    )


def partner_references(partner: Partner, most: int) -> list[Path]:
    """Another style's images: held-out ones where there are 4, else those trained on; none where its run keeps none."""
    prepared = load_result(partner.run, "preprocess", Prepared)
    if prepared is None:
        return []
    chosen = prepared.heldout if len(prepared.heldout) >= LEAST_HELD_OUT else prepared.images
    return [file for file in image_files(partner.run, chosen, most) if file.is_file()]


def outside_digests(spec: StyleSpec, run: RunPaths) -> list[list[str]]:
    """What evaluation takes from outside its run: the adapters it mixes with, and the images of their styles."""
    return [[*partner_digest(partner), _images_digest(partner)] for partner in find_partners(spec, run).chosen]


def _images_digest(partner: Partner) -> str:
    prepared = load_result(partner.run, "preprocess", Prepared)
    return sha256_json([image.source_sha256 for image in (*prepared.images, *prepared.heldout)]) if prepared else ""


def image_files(run: RunPaths, images: Sequence[PreparedImage], most: int) -> list[Path]:
    """The first so many of a run's prepared or held-out images."""
    return [run.images / image.name for image in images[:most]]
