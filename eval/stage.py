"""The stage `evaluate`: sample the grid, let the generator go, then score what lies on disk.

Images go to disk as they are made and are read again a cell at a time, so that the diffusion model and the encoders
are never in memory together. A score none of whose models is real is worth nothing, and carries that with it:
`meaningful` on each score, on the report and in scores.json.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from brushset.bases.resolve import resolve_base
from brushset.errors import InputError, VerificationFailed
from brushset.files import write_json
from brushset.generator import MultiLoRAGenerator
from brushset.pipeline import Stage, StageContext
from brushset.prepare.holdout import verify_holdout
from brushset.protocols import GridImages
from brushset.records import Cell, EvalReport, Prepared, PreparedImage, Trained
from eval.metric import Extractor
from eval.partners import Partner, find_partners, partner_digests
from eval.sample import Generator, PlannedCell, draw_grid, grid_places, plan_cells, sample_grid, unique_seeds
from eval.score import FLOOR_CELL, load_extractors, score_grids
from eval.style_similarity import LEAST_HELD_OUT

if TYPE_CHECKING:
    from PIL.Image import Image

MEANINGLESS = (
    "These numbers say nothing about quality: they show that the machinery runs. Do not compare or publish them."
)


def evaluate(context: StageContext) -> EvalReport:
    """Samples, scores, writes eval/{images/, grid.png, scores.json}."""
    spec, folder = context.spec, context.workdir
    verify_holdout(context.get(Prepared), context.run.images)
    partners = find_partners(spec, context.run)
    cells = _sample(context, plan_cells(spec, partners.chosen), partners.chosen)
    draw_grid(cells, spec.evaluate, folder).save(folder / "grid.png", optimize=True)
    extractors = load_extractors(spec)
    scores = score_grids(_grids(context, cells), extractors, context.emit, total=len(cells) + 1)
    if context.get(Trained).base_random:
        scores = [score.model_copy(update={"meaningful": False}) for score in scores]
    report = EvalReport(
        cells=tuple(_in_run(cell) for cell in cells),
        scores=tuple(scores),
        grid="eval/grid.png",
        prompts=spec.evaluate.prompts,
        seeds=unique_seeds(spec.evaluate),
        meaningful=all(score.meaningful for score in scores),
        notes=(*_notes(context, extractors.values()), *partners.left_out, *_flat_note(cells, folder)),
    )
    _write_scores(context, report)
    return report


def flat_images(cells: Sequence[Cell], folder: Path) -> list[str]:
    """Images of one single colour: what a NaN in half precision, or a safety filter, leaves."""
    return [path for cell in cells for path in cell.images if _is_flat(_open(folder / path))]


def _is_flat(image: Image) -> bool:
    return all(low == high for low, high in (channel.getextrema() for channel in image.split()))


def _sample(context: StageContext, planned: Sequence[PlannedCell], partners: Sequence[Partner]) -> tuple[Cell, ...]:
    generator = _load_generator(context, partners)
    try:
        spec = context.spec
        return sample_grid(generator, planned, spec.evaluate, context.workdir, clip_skip=spec.train.clip_skip)
    finally:
        del generator
        _free_memory()


def _load_generator(context: StageContext, partners: Sequence[Partner]) -> Generator:
    spec = context.spec
    base = resolve_base(spec.base.model, spec.base.revision, context.emit)
    if base.sha256 != context.get(Trained).base_sha256:
        raise VerificationFailed(
            f"{base.path}: base model {base.name} is not the one that the adapter was trained on "
            f"({base.sha256[:12]}, {context.get(Trained).base_sha256[:12]}); fix: --force train"
        )
    generator = MultiLoRAGenerator(base, emit=context.emit)
    generator.load_lora(context.run.root / context.get(Trained).weights, spec.name)
    for partner in partners:
        generator.load_lora(partner.weights, partner.style)
    return generator


def _grids(context: StageContext, cells: Sequence[Cell]) -> Iterator[tuple[str, GridImages]]:
    """What each cell is scored on, read when its turn comes; last, the references against themselves."""
    prepared = context.get(Prepared)
    if not prepared.images:
        raise InputError(f"{context.run.images}: no prepared image to hold the adapter's images against")
    references, held_out = _references(context, prepared.images), _references(context, prepared.heldout)
    prompts = [place.prompt for place in grid_places(context.spec.evaluate)]
    for cell in cells:
        images = [_open(context.workdir / path) for path in cell.images]
        yield cell.name, GridImages(images, prompts, references, held_out)
    yield FLOOR_CELL, GridImages(references[0::2], [], references[1::2], held_out)


def _references(context: StageContext, chosen: Sequence[PreparedImage]) -> list[Image]:
    """Prepared images as the metrics see them: cropped and resized, by one code, to what the generator makes."""
    from PIL import Image, ImageOps

    settings = context.spec.evaluate
    size = (settings.width, settings.height)
    return [
        ImageOps.fit(_open(context.run.images / image.name), size, Image.Resampling.BICUBIC)
        for image in chosen[: settings.references]
    ]


def _open(path: Path) -> Image:
    from PIL import Image

    with Image.open(path) as image:
        return image.convert("RGB")


def _in_run(cell: Cell) -> Cell:
    return cell.model_copy(update={"images": tuple(f"eval/{path}" for path in cell.images)})


def _notes(context: StageContext, extractors: Iterable[Extractor]) -> list[str]:
    spec = context.spec
    notes = [_references_note(context.get(Prepared))]
    if spec.smoke:
        notes.append("This is a smoke run: training was a few steps, and the encoders are made up.")
    if context.get(Trained).base_random:
        notes.append(f'The base model "{spec.base.model}" is made of random numbers: its images are noise.')
    return notes + [f"{extractor.id}: {extractor.note}." for extractor in extractors if extractor.note]


def _references_note(prepared: Prepared) -> str:
    held = len(prepared.heldout)
    if held < LEAST_HELD_OUT:
        return f"References are the images trained on ({held} are held out): a copy of one scores best of all."
    return (
        f"Style similarity is held against {held} held-out images, never trained on; FID, which wants many, against "
        "images trained on: there a copy of one scores best of all."
    )


def _flat_note(cells: Sequence[Cell], folder: Path) -> list[str]:
    flat = flat_images(cells, folder)
    if not flat:
        return []
    return [f"{len(flat)} images are of one single colour, the first is {flat[0]}: see docs/troubleshooting.md."]


def _write_scores(context: StageContext, report: EvalReport) -> None:
    """scores.json: the record, with what it is worth in front."""
    statement = "Every model that took part is real." if report.meaningful else MEANINGLESS
    header = {"meaningful": report.meaningful, "statement": statement, "style": context.spec.name}
    write_json(context.workdir / "scores.json", header | report.model_dump(mode="json"))


def _free_memory() -> None:
    """Cycles inside a pipeline keep its weights alive until they are collected."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


STAGE = Stage(
    name="evaluate",
    record=EvalReport,
    run=evaluate,
    reads=("evaluate", "trigger", "base", "smoke", "train.clip_skip"),
    needs=("convert", "train", "preprocess"),
    output="eval",
    outside=partner_digests,
)
