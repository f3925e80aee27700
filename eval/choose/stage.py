"""The stage `choose`: all kept checkpoints at several weights are looked at, coarsely first, and one of them is chosen.

It depends on the style's own run alone, so that the choice is the same whatever other styles there are. Where style cannot
be measured the held-out loss decides; where there is none the checkpoint that training ended with is taken. The record's
reason says which it was.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from brushset.failure import free_memory
from brushset.files import write_json
from brushset.generator import MultiLoRAGenerator
from brushset.pipeline import Stage, StageContext
from brushset.prepare.holdout import verify_holdout
from brushset.records import Candidate, Choice, Prepared, Trained
from eval.base_model import require_base
from eval.cells import BASE_CELL
from eval.choose.budget import Budget
from eval.choose.candidates import Lineup, find_lineup, thinned
from eval.choose.decide import Outcome, make_choice
from eval.choose.plan import Plan, full_plan
from eval.choose.rule import Bounds, judge, way
from eval.choose.studio import Asked, Studio, draw_within, places_of
from eval.kept_images import KeepsBase, keeping_base

if TYPE_CHECKING:
    from eval.choose.lookout import Lookout
    from eval.choose.rounds import Search

SCRATCH = ".scratch"
"""Below the stage's folder: all images, as long as it works."""


def choose_adapter(context: StageContext) -> Choice:
    """Writes choice/{images/, grid.png, choice.json}."""
    # NumPy comes with these: `--help` must not wait for it.
    from eval.choose.lookout import Lookout
    from eval.look import load_extractors

    started, scratch = time.monotonic(), context.workdir / SCRATCH
    verify_holdout(context.get(Prepared), context.run.images)
    lineup = find_lineup(context.get(Trained), context.spec.evaluate)
    studio = Studio(context, lineup.files, scratch, lambda: _open_generator(context))
    try:
        lookout = Lookout(context, studio, load_extractors(context.spec))
        made_up = _why_meaningless(context, meaningful=lookout.real)
        choice = make_choice(context, lineup, _search(context, lineup, lookout), studio)
    finally:
        studio.release()
        free_memory()
    shutil.rmtree(scratch, ignore_errors=True)
    spent = {"images": studio.images, "seconds": round(time.monotonic() - started, 2)}
    worth = [f"The numbers of the candidates say nothing of quality: {made_up}."] if made_up else []
    choice = choice.model_copy(update={**spent, "meaningful": not made_up, "notes": (*choice.notes, *worth)})
    write_json(context.workdir / "choice.json", choice.model_dump(mode="json"))
    context.emit("note", text=choice.reason)
    return choice


def _search(context: StageContext, lineup: Lineup, lookout: Lookout) -> Outcome:
    """Plans, says what it will cost, looks, picks, and looks at the one picked again."""
    from eval.choose.rounds import Search

    settings, studio, emit = context.spec.evaluate, lookout.studio, context.emit
    tried = thinned(lineup.epochs, settings.choose_checkpoints)
    plan = full_plan(
        settings, len(tried), len(lineup.weights), thinned=len(tried) < len(lineup.epochs),
        measured=lookout.could_measure_style,
    )  # fmt: skip
    emit("note", text=_planned(plan, lineup))
    budget = Budget(settings.budget_minutes)
    last = [each for each in lineup.first(plan.checkpoints) if each.epoch == tried[-1]]
    studio.make(places_of(plan.shown, plan.seeds[:1], settings.prompts), last)
    budget.measure(studio.images, studio.seconds)
    cut, note = budget.fit(plan, emit)
    if cut is None:
        return Outcome(plan, why_not=note)
    studio.make(places_of(cut.chosen_on, cut.seeds, settings.prompts), baselines=[BASE_CELL])
    lookout.one_seed = len(cut.seeds) == 1
    lookout.find_ruler(cut.chosen_on, cut.seeds)
    if lookout.ruler is None:
        cut = replace(cut, measured=False)
    search = Search(cut, lineup, studio, lookout.look, settings, emit, budget)
    search.run()
    encoder = lookout.ruler.id if lookout.ruler else ""
    _, _, looked = search.history[-1]
    notes = (*filter(None, [note]), *lookout.notes)
    outcome = Outcome(cut, search, encoder=encoder, measured_by=looked.measured_by(), notes=notes)
    return _pick(context, outcome, lookout)


def _pick(context: StageContext, outcome: Outcome, lookout: Lookout) -> Outcome:
    """The choice of a search that is done, with all that was left out of it."""
    search = outcome.search
    assert search is not None
    pick = search.pick()
    if pick is None:
        why_not = _why_meaningless(context, meaningful=lookout.real) or lookout.why_not or _why_nobody(search)
        outcome = replace(outcome, why_not=why_not)
    else:
        outcome = _report(context, replace(outcome, pick=pick), search, lookout)
    return replace(outcome, notes=(*outcome.notes, *search.pace.notes))


def _report(context: StageContext, outcome: Outcome, search: Search, lookout: Lookout) -> Outcome:
    """Looks at the one picked, and at what has to be beaten, on the prompts that were kept for it."""
    plan, pick, studio = outcome.plan, outcome.pick, lookout.studio
    assert pick is not None
    chosen, prompts = way(pick.chosen), context.spec.evaluate.prompts
    asked = Asked("the report", plan.reported_on, plan.seeds, [chosen], (BASE_CELL, studio.words))
    plan = replace(plan, reported_on=draw_within(studio, search.pace, asked))
    outcome = replace(outcome, plan=plan)
    studio.make(places_of(plan.shown, plan.seeds[:1], prompts), baselines=[studio.words])
    if chosen in studio.broken:
        return replace(outcome, pick=None, why_not=f"{chosen}: {studio.broken[chosen]}")
    looked = lookout.look([chosen], plan.reported_on, plan.seeds, words=True)
    cells = studio.cell(chosen).name, studio.words.name
    about = {
        "round": len(plan.rounds()) + 1, "images": len(plan.reported_on) * len(plan.seeds), "feasible": None,
    }  # fmt: skip
    found = Candidate(
        weights=pick.chosen.weights, epoch=chosen.epoch, weight=chosen.weight, **about, **looked.estimates(cells[0])
    )
    words = Candidate(weights="", epoch=0, weight=0, **about, **looked.estimates(cells[1]))
    return replace(
        outcome,
        reported=judge(found, Bounds.of(context.spec.evaluate)),
        words=words,
        beaten=looked.beats(*cells),
        why_not=_why_meaningless(context, meaningful=lookout.real),
    )


def _why_nobody(search: Search) -> str:
    """Why style was measured of no candidate."""
    notes = dict.fromkeys(each.retention.note for each in search.standings.values())
    return f"style {next(iter(notes), 'was not measured')}"


def _why_meaningless(context: StageContext, *, meaningful: bool) -> str:
    """Why numbers say nothing of quality; empty where they do."""
    if context.spec.smoke:
        return "this is a smoke run"
    if context.get(Trained).base_random:
        return "the base model is made of random numbers"
    return "" if meaningful else "networks of the evaluation are made up"


def _planned(plan: Plan, lineup: Lineup) -> str:
    candidates = f"{plan.checkpoints * plan.weights} candidates"
    if len(lineup.epochs) > plan.checkpoints:
        candidates += f", {plan.checkpoints} of {len(lineup.epochs)} checkpoints at {plan.weights} weights"
    else:
        candidates += f", {plan.checkpoints} checkpoints at {plan.weights} weights"
    rounds = len(plan.rounds())
    what = (
        f"in {rounds} round{'s' * (rounds > 1)}" if plan.measured else "to be looked at, since style cannot be measured"
    )
    return f"{candidates}: at most {plan.images} images {what}"


def _open_generator(context: StageContext) -> tuple[MultiLoRAGenerator, KeepsBase]:
    """In batches on a CPU too: six times as fast in the small world, and a value in 3,000 differs by one grey level."""
    base = require_base(context)
    generator = MultiLoRAGenerator(base, exact=False, emit=context.emit)
    return generator, keeping_base(generator, base)


STAGE = Stage(
    name="choose",
    record=Choice,
    run=choose_adapter,
    reads=(
        "name",
        "trigger",
        "base",
        "smoke",
        "train.clip_skip",
        "caption.style_words",
        "caption.more_style_words",
        *(
            f"evaluate.{name}"
            for name in (
                "prompts", "negative_prompt", "seeds", "weight", "weights", "style_words", "min_fidelity",
                "min_diversity", "max_memorisation", "choose_checkpoints", "choose_finalists", "choose_loss_margin",
                "budget_minutes", "steps", "guidance", "width", "height", "batch_size", "references", "clip_model",
                "csd_model", "dinov2_model", "lpips_model",
            )
        ),
    ),
    needs=("train", "preprocess"),
    output="choice",
)  # fmt: skip
