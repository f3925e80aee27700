"""The stage `evaluate`: sample the grid, let the generator go, then score what was made.

Images go to disk aside and to the encoders from memory (eval/frames.py), once the generator is gone: the diffusion model and
the encoders are never in memory together. A score none of whose models is real is worth nothing, and carries that with it:
`meaningful` on each score, on the report and in scores.json.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from brushset.chosen import ChosenAdapter, chosen_adapter, load_choice
from brushset.failure import free_memory
from brushset.files import write_json
from brushset.generator import MultiLoRAGenerator
from brushset.images import is_flat
from brushset.partners import Partner, find_partners
from brushset.pipeline import Stage, StageContext
from brushset.prepare.holdout import verify_holdout
from brushset.records import Cell, EvalReport, MixChoice, Prepared, Trained
from brushset.spec import EvaluateSection
from eval.base_model import require_base
from eval.cells import plan_cells, style_words, unique_seeds
from eval.frames import Frames
from eval.grid_budget import GridBudget
from eval.kept_images import keeping_base
from eval.layout import LEAST_HELD_OUT, Layout
from eval.loss_gap import loss_gap_score
from eval.mixing.predict import Files, predict_pairs
from eval.references import outside_digests
from eval.sample import Generator, Wanted, draw_grid, sample_grid

if TYPE_CHECKING:
    from eval.look import Extractor
    from eval.metric import ExtractorName
    from eval.rounds import Looking, Sampled

MEANINGLESS = (
    "These numbers say nothing about quality: they show that the machinery runs. Do not compare or publish them."
)


def evaluate(context: StageContext) -> EvalReport:
    """Samples, scores, writes eval/{images/, grid.png, scores.json}."""
    # NumPy comes with these: `--help` must not wait for it.
    from eval.look import load_extractors
    from eval.rounds import Looking

    context = _at_chosen_weight(context)
    verify_holdout(context.get(Prepared), context.run.images)
    partners = find_partners(context.spec, context.run)
    extractors = load_extractors(context.spec)
    budget = GridBudget.after(load_choice(context.run), context.spec.evaluate.budget_minutes)
    cells = len(plan_cells(context.spec, partners.chosen))
    context = _with_settings(context, budget.fit(context.spec.evaluate, cells, context.emit))
    folder, frames = context.workdir, Frames()
    looking = Looking(context, partners.chosen, extractors, budget, frames)
    made = looking.sample_in_rounds(lambda slices: _sample(looking, slices))
    report = _measure(looking, made)
    shown = {plan.name for plan in made.planned if plan.shown} | {choice.chosen.cell for choice in report.mix_choices}
    first = tuple(cell for cell in made.cells if cell.name in shown)
    draw_grid(first, made.places, folder).save(folder / "grid.png", optimize=True)
    report = report.model_copy(
        update={
            "cells": tuple(_in_run(cell) for cell in first),
            "more_cells": tuple(_in_run(cell) for cell in made.cells if cell.name not in shown),
            "notes": (*report.notes, *budget.notes, *partners.left_out, *_flat_note(made.cells, folder, frames)),
        }
    )
    _write_scores(context, report)
    return report


def _at_chosen_weight(context: StageContext) -> StageContext:
    """With [evaluate] weight as it was chosen: that of the cell that is judged."""
    weight = _own(context).weight
    if weight is None:
        return context
    return _with_settings(context, context.spec.evaluate.model_copy(update={"weight": weight}))


def _with_settings(context: StageContext, settings: EvaluateSection) -> StageContext:
    return dataclasses.replace(context, spec=context.spec.model_copy(update={"evaluate": settings}))


def _measure(looking: Looking, made: Sampled) -> EvalReport:
    """Everything but the cells' final paths. Nothing is meaningful on a base model of random numbers."""
    from eval.evidence import matrices, nearest_pairs
    from eval.score import score_grid
    from eval.values import place_values

    context, extractors, pictures, seen = looking.context, looking.extractors, made.pictures, made.seen
    spec, trained, layout = context.spec, context.get(Trained), pictures.layout

    def path_in_run(cell: str, number: int) -> str:
        if not cell:
            return pictures.trained[number].relative_to(context.run.root).as_posix()
        return f"eval/{pictures.cells[cell][number].relative_to(context.workdir).as_posix()}"

    scores = [*score_grid(layout, seen, extractors, context.emit), loss_gap_score(trained, len(pictures.held_out))]
    pairs = nearest_pairs(pictures, seen, extractors, relative=path_in_run)
    worth = {} if not trained.base_random else {"meaningful": False}
    scores = [score.model_copy(update=worth) for score in scores]
    measured = [score for score in scores if score.value is not None]
    values = place_values(pictures, made.places, seen, extractors, scores)
    write_json(context.workdir / context.run.place_values.name, values.model_dump(mode="json"))
    return EvalReport(
        cells=(),
        scores=tuple(scores),
        grid="eval/grid.png",
        prompts=tuple(dict.fromkeys(place.prompt for place in made.places)),
        seeds=unique_seeds(spec.evaluate),
        meaningful=not worth and bool(measured) and all(score.meaningful for score in measured),
        notes=tuple(_notes(context, layout, extractors)),
        matrices=tuple(matrix.model_copy(update=worth) for matrix in matrices(seen, extractors)),
        nearest=tuple(pair.model_copy(update=worth) for pair in pairs),
        mix_choices=_mix_choices(looking, made),
    )


def _mix_choices(looking: Looking, made: Sampled) -> tuple[MixChoice, ...]:
    """What is advised of each pair and triple, with what was predicted of each pair."""
    from eval.mixing.choose import mixes_of

    context = looking.context
    own = _own(context)
    files = {context.spec.name: own.file, **{partner.style: partner.weights for partner in looking.partners}}
    digests = {context.spec.name: own.sha256}
    digests |= {partner.style: partner.sha256 for partner in looking.partners}
    choices = made.chooser.choices(digests)
    pairs = [cells[0] for styles, cells in mixes_of(made.planned).items() if len(styles) == 2]
    predicted = (
        predict_pairs(pairs, Files(require_base(context), files), context.spec.evaluate, context.emit) if pairs else {}
    )
    return tuple(choice.model_copy(update={"predicted": predicted.get(choice.styles)}) for choice in choices)


def flat_images(cells: Sequence[Cell], folder: Path, frames: Frames) -> list[str]:
    """Images of one single colour: what a NaN in half precision, or a safety filter, leaves."""
    return [path for cell in cells for path in cell.images if is_flat(frames.open(folder / path))]


def _sample(looking: Looking, slices: Iterable[Sequence[Wanted]]) -> None:
    context, spec = looking.context, looking.context.spec
    generator = _load_generator(context, looking.partners)
    try:
        sample_grid(
            generator, slices, spec.evaluate, context.workdir, frames=looking.frames, clip_skip=spec.train.clip_skip
        )
    finally:
        del generator
        free_memory()


def _load_generator(context: StageContext, partners: Sequence[Partner]) -> Generator:
    base = require_base(context)
    generator = MultiLoRAGenerator(base, exact=False, emit=context.emit)
    generator.load_lora(_own(context).file, context.spec.name)
    for partner in partners:
        generator.load_lora(partner.weights, partner.style)
    return keeping_base(generator, base)


def _own(context: StageContext) -> ChosenAdapter:
    """This style's adapter."""
    return chosen_adapter(context.run, context.get(Trained))


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


def _flat_note(cells: Sequence[Cell], folder: Path, frames: Frames) -> list[str]:
    flat = flat_images(cells, folder, frames)
    if not flat:
        return []
    return [f"{len(flat)} images are of one single colour, the first is {flat[0]}: see docs/troubleshooting.md."]


def _write_scores(context: StageContext, report: EvalReport) -> None:
    """scores.json: the record, with what it is worth in front."""
    statement = "Every model that took part is real." if report.meaningful else MEANINGLESS
    header = {"meaningful": report.meaningful, "statement": statement, "style": context.spec.name}
    write_json(context.workdir / "scores.json", header | report.model_dump(mode="json"))


STAGE = Stage(
    name="evaluate",
    version=3,
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
    needs=("choose", "convert", "train", "preprocess"),
    output="eval",
    outside=outside_digests,
)
