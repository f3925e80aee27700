"""The stage `evaluate`: sample the grid, let the generator go, then score what lies on disk.

Images go to disk as they are made and are read again a cell at a time, so that the diffusion model and the encoders
are never in memory together. A score none of whose models is real is worth nothing, and carries that with it:
`meaningful` on each score, on the report and in scores.json.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from brushset.bases.resolve import resolve_base
from brushset.errors import VerificationFailed
from brushset.files import write_json
from brushset.generator import MultiLoRAGenerator
from brushset.partners import Partner, find_partners
from brushset.pipeline import Stage, StageContext
from brushset.prepare.holdout import verify_holdout
from brushset.records import Cell, EvalReport, Prepared, Trained
from eval.cells import PlannedCell, plan_cells, style_words, unique_seeds
from eval.layout import LEAST_HELD_OUT, Layout, layout_of
from eval.loss_gap import loss_gap_score
from eval.references import find_pictures, outside_digests
from eval.sample import Generator, draw_grid, sample_grid

if TYPE_CHECKING:
    from PIL.Image import Image

    from eval.look import Extractor
    from eval.metric import ExtractorName

MEANINGLESS = (
    "These numbers say nothing about quality: they show that the machinery runs. Do not compare or publish them."
)


def evaluate(context: StageContext) -> EvalReport:
    """Samples, scores, writes eval/{images/, grid.png, scores.json}."""
    # NumPy comes with these: `--help` must not wait for it.
    from eval.look import load_extractors

    spec, folder = context.spec, context.workdir
    verify_holdout(context.get(Prepared), context.run.images)
    partners = find_partners(spec, context.run)
    extractors = load_extractors(spec)
    planned = plan_cells(spec, partners.chosen)
    cells = _sample(context, planned, partners.chosen)
    shown = tuple(cell for cell, plan in zip(cells, planned, strict=True) if plan.shown)
    draw_grid(shown, spec.evaluate, folder).save(folder / "grid.png", optimize=True)
    report = _measure(context, cells, partners.chosen, extractors)
    report = report.model_copy(
        update={
            "cells": tuple(_in_run(cell) for cell in shown),
            "more_cells": tuple(_in_run(cell) for cell in cells if cell not in shown),
            "notes": (*report.notes, *partners.left_out, *_flat_note(cells, folder)),
        }
    )
    _write_scores(context, report)
    return report


def _measure(
    context: StageContext,
    cells: Sequence[Cell],
    partners: Sequence[Partner],
    extractors: dict[ExtractorName, Extractor],
) -> EvalReport:
    """Everything but the cells' final paths. Nothing is meaningful on a base model of random numbers."""
    from eval.evidence import matrices, nearest_pairs
    from eval.look import look_at
    from eval.score import score_grid

    spec, trained = context.spec, context.get(Trained)
    layout = layout_of(cells, spec.name, spec.evaluate.weight)
    pictures = find_pictures(context, layout, cells, partners)
    seen = look_at(pictures, extractors, context.emit)

    def path_in_run(cell: str, number: int) -> str:
        if not cell:
            return pictures.trained[number].relative_to(context.run.root).as_posix()
        return f"eval/{pictures.cells[cell][number].relative_to(context.workdir).as_posix()}"

    scores = [*score_grid(layout, seen, extractors, context.emit), loss_gap_score(trained, len(pictures.held_out))]
    pairs = nearest_pairs(pictures, seen, extractors, relative=path_in_run)
    worth = {} if not trained.base_random else {"meaningful": False}
    measured = [score for score in scores if score.value is not None]
    return EvalReport(
        cells=(),
        scores=tuple(score.model_copy(update=worth) for score in scores),
        grid="eval/grid.png",
        prompts=spec.evaluate.prompts,
        seeds=unique_seeds(spec.evaluate),
        meaningful=not worth and bool(measured) and all(score.meaningful for score in measured),
        notes=tuple(_notes(context, layout, extractors)),
        matrices=tuple(matrix.model_copy(update=worth) for matrix in matrices(seen, extractors)),
        nearest=tuple(pair.model_copy(update=worth) for pair in pairs),
    )


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


def _open(path: Path) -> Image:
    from PIL import Image

    with Image.open(path) as image:
        return image.convert("RGB")


def _in_run(cell: Cell) -> Cell:
    return cell.model_copy(update={"images": tuple(f"eval/{path}" for path in cell.images)})


def _notes(context: StageContext, layout: Layout, extractors: Mapping[ExtractorName, Extractor]) -> list[str]:
    spec = context.spec
    notes = [_references_note(context.get(Prepared))]
    if spec.smoke:
        notes.append("This is a smoke run: training was a few steps, and the encoders are made up.")
    if context.get(Trained).base_random:
        notes.append(f'The base model "{spec.base.model}" is made of random numbers: its images are noise.')
    if layout.words:
        notes.append(
            f'"{layout.words}" is the baseline to beat: the base with "{style_words(spec)}" before each prompt.'
        )
    identities = [extractor.identity for extractor in extractors.values()]
    return notes + [f"{identity.id}: {identity.note}." for identity in identities if identity.note]


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
    version=2,
    record=EvalReport,
    run=evaluate,
    reads=(
        "evaluate",
        "trigger",
        "base",
        "smoke",
        "train.clip_skip",
        "caption.style_words",
        "caption.more_style_words",
    ),
    needs=("convert", "train", "preprocess"),
    output="eval",
    outside=outside_digests,
)
