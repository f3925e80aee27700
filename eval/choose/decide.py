"""From what was found to the record: by style where that was measured and means something, else by the held-out loss, else
the checkpoint that training ended with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from brushset.chosen import last_epoch
from brushset.pipeline import StageContext
from brushset.records import Candidate, Choice, Trained
from eval.cells import BASE_CELL
from eval.choose.candidates import Lineup, Way, lowest_loss
from eval.choose.keep import draw_sheet, keep_samples
from eval.choose.plan import Plan
from eval.choose.reason import by_default, by_loss, by_retention
from eval.choose.rule import Bounds, Pick, way
from eval.choose.studio import Studio, places_of

if TYPE_CHECKING:
    from eval.choose.rounds import Search

DecidedBy = Literal["retention", "held-out loss", "default"]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the search found. `why_not` says why style does not decide; empty where it does. `beaten`: whether the chosen
    one keeps more than the base with style words, beyond noise. `encoder` names what style was measured by,
    `measured_by` what each number was.
    """

    plan: Plan
    search: Search | None = None
    pick: Pick | None = None
    reported: Candidate | None = None
    words: Candidate | None = None
    beaten: bool = False
    why_not: str = ""
    encoder: str = ""
    measured_by: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


def make_choice(context: StageContext, lineup: Lineup, outcome: Outcome, studio: Studio) -> Choice:
    """The record, but for what it took and what it is worth."""
    prompts, plan = context.spec.evaluate.prompts, outcome.plan
    chosen, decided_by, reason = _decide(context, lineup, outcome)
    shown = _shown(context, outcome, studio)
    measured = [each for each in shown["candidates"] if each.retention.value is not None]
    return Choice(
        weights=lineup.files[chosen.epoch].path,
        weights_sha256=lineup.files[chosen.epoch].sha256,
        epoch=chosen.epoch,
        weight=chosen.weight,
        decided_by=decided_by,
        feasible=outcome.pick.feasible if outcome.pick and decided_by == "retention" else True,
        reason=reason,
        meaningful=False,
        encoder=outcome.encoder,
        measured_by=dict(outcome.measured_by),
        bounds=dataclasses.asdict(Bounds.of(context.spec.evaluate)),
        chosen_on=tuple(prompts[number] for number in outcome.search.chosen_on) if outcome.search and measured else (),
        reported_on=tuple(prompts[number] for number in plan.reported_on) if outcome.reported else (),
        seeds=plan.seeds,
        losses=lineup.losses,
        notes=(*lineup.notes, *outcome.notes),
        **shown,
    )


def _decide(context: StageContext, lineup: Lineup, outcome: Outcome) -> tuple[Way, DecidedBy, str]:
    """Who, by what, and why."""
    pick, trained, settings = outcome.pick, context.get(Trained), context.spec.evaluate
    if pick and outcome.reported and outcome.words and outcome.search and not outcome.why_not:
        others = outcome.search.candidates()
        reason = by_retention(pick, others, (outcome.reported, outcome.words), beaten=outcome.beaten)
        return way(pick.chosen), "retention", reason
    loss = lowest_loss(lineup.losses, lineup.files)
    if loss and not trained.base_random and not context.spec.smoke:
        chosen = Way(loss.epoch, settings.weight)
        return chosen, "held-out loss", by_loss(chosen, loss, outcome.why_not)
    chosen = Way(last_epoch(trained), settings.weight)
    validated = trained.best_epoch is not None
    return chosen, "default", by_default(chosen, validated=validated, why_not=outcome.why_not)


def _shown(context: StageContext, outcome: Outcome, studio: Studio) -> dict[str, Any]:
    """The record's fields with images in them; what was not sampled is not among them."""
    prompts, plan, search = context.spec.evaluate.prompts, outcome.plan, outcome.search
    if search is None:
        return {"candidates": ()}
    places = places_of(plan.shown, plan.seeds[:1], prompts)
    found = search.candidates()
    shown: dict[str, Any] = {
        "candidates": tuple(_with_samples(each, way(each), studio, places) for each in found),
        "base_samples": keep_samples(studio, BASE_CELL, places, "base"),
        "shown_prompts": tuple(prompts[number] for number in plan.shown),
    }
    if found:
        draw_sheet(studio, [way(each) for each in found], places[0]).save(context.workdir / "grid.png", optimize=True)
        shown["grid"] = "choice/grid.png"
    if outcome.reported and outcome.words:
        elsewhere = places_of(plan.reported_on[: len(plan.shown)], plan.seeds[:1], prompts)
        samples = keep_samples(studio, studio.cell(way(outcome.reported)), elsewhere, "reported")
        shown["reported"] = outcome.reported.model_copy(update={"samples": samples})
        samples = keep_samples(studio, studio.words, places, "words")
        shown["words"] = outcome.words.model_copy(update={"samples": samples})
    return shown


def _with_samples(candidate: Candidate, one: Way, studio: Studio, places: Sequence[Any]) -> Candidate:
    name = f"{one.epoch}_{one.weight:g}"
    return candidate.model_copy(update={"samples": keep_samples(studio, studio.cell(one), places, name)})
