"""The stage `report`: report.html, one self-contained page that says what a run is worth and shows why; and report.json.

The verdict stands first, and where a base or an encoder is made up it says that no number here is quality. Pictures
are small data URIs and plots inline SVG, so that the page can be mailed, printed and opened without a network. What
users wrote (captions, file names, prompts) is escaped by the template engine. A part that there is nothing to show for
is left out; what was not measured says so, with the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from brushset.files import write_atomic, write_json
from brushset.load import spec_text
from brushset.manifest import read_manifest
from brushset.page.captions import captions_part
from brushset.page.choice import Number, choice_part, headline_numbers
from brushset.page.mixes import matrix_tables, mix_cards
from brushset.page.pictures import extremes, grid_rows, load_values, main_cell, pair_rows, sample_images, trigger_strip
from brushset.page.plots import plot_loss
from brushset.page.scores import missing_lines, score_families, yardsticks
from brushset.page.template import render_page
from brushset.page.times import stage_times
from brushset.page.training import training_samples
from brushset.page.verdict import Verdict, judge
from brushset.pipeline import Stage, StageContext
from brushset.records import (
    Adapter,
    Audit,
    Captions,
    Cell,
    Choice,
    EngineConfig,
    EvalReport,
    Exports,
    Prepared,
    Report,
    Trained,
)
from brushset.spec import StyleSpec
from brushset.stage_records import load_record

TEMPLATE = "report.html.j2"
NEEDS = ("audit", "preprocess", "caption", "configure", "train", "choose", "convert", "evaluate", "export")
_MATRICES = ("mix_retention", "mix_interference")
# Anchor, title, and which of the page's parts must have something in it.
_CONTENTS = (
    ("choice", "checkpoint and weight", "part"), ("grid", "grid", ""), ("scores", "scores", ""),
    ("samples", "best and worst", "extremes"), ("memorisation", "copies", "pairs"), ("trigger", "trigger", "triggers"),
    ("mixes", "mixes", "mixed"), ("data", "images and captions", ""), ("training", "training", ""),
    ("files", "files", ""), ("times", "times", ""), ("again", "to run it again", ""),
)  # fmt: skip


def gather_page(context: StageContext, verdict: Verdict) -> dict[str, Any]:
    """Everything that the template shows."""
    root, captions, trained = context.run.root, context.get(Captions), context.get(Trained)
    weights, config = root / trained.weights, context.get(EngineConfig)
    shown = _evidence(context)
    return {
        **shown,
        "contents": [(anchor, title) for anchor, title, needs in _CONTENTS if not needs or shown[needs]],
        "spec": context.spec,
        "run": context.run,
        "verdict": verdict,
        "audit": context.get(Audit),
        "audit_findings": [item for item in context.get(Audit).findings if item.accepted or item.severity != "note"],
        "prepared": context.get(Prepared),
        "config": config,
        "trained": trained,
        "adapter": context.get(Adapter),
        "exports": context.get(Exports),
        "caption_sources": Counter(caption.source for caption in captions.captions).most_common(),
        "captions": captions_part(captions, context.get(Prepared)),
        "samples": sample_images(context.get(Prepared), captions, context.run.images),
        "loss_svg": plot_loss(trained.losses, trained.validation),
        "made": training_samples(trained, root),
        "times": stage_times({name: load_record(context.run, name) for name in NEEDS}),
        "weights_bytes": weights.stat().st_size if weights.is_file() else 0,
        "manifest": read_manifest(context.run),
        "spec_text": spec_text(context.spec),
    }


def report_json(context: StageContext, verdict: Verdict, headline: list[Number]) -> dict[str, Any]:
    """What the page claims, for machines."""
    choice, trained = _choice(context), context.get(Trained)
    evaluation, exports = context.get(EvalReport), context.get(Exports)
    return {
        "style": context.spec.name,
        "run": context.run.run_id,
        "meaningful": verdict.tone != "machinery" and evaluation.meaningful,
        "verdict": {"tone": verdict.tone, "headline": verdict.headline, "text": verdict.text},
        "use": {
            "weights": exports.weights or trained.weights,
            "weights_sha256": exports.weights_sha256 or trained.weights_sha256,
            "epoch": exports.epoch or trained.best_epoch or trained.epochs,
            "weight": exports.weight,
            "trigger": exports.trigger,
        },
        "numbers": [
            {"title": each.title, "meaningful": each.meaningful, **each.estimate.model_dump(mode="json")}
            for each in headline
        ],
        "choice": choice.model_dump(mode="json") if choice else None,
        "scores": [score.model_dump(mode="json") for score in evaluation.scores],
        "mixes": [each.model_dump(mode="json") for each in evaluation.mix_choices],
    }


def _evidence(context: StageContext) -> dict[str, Any]:
    """What is shown of the evaluation; empty parts are falsy, and left out."""
    root, evaluation, choice = context.run.root, context.get(EvalReport), _choice(context)
    main = _main(context)
    cards, tables = mix_cards(evaluation, root), matrix_tables(evaluation.matrices, *_MATRICES)
    confusion = matrix_tables(evaluation.matrices, "confusion")
    return {
        "evaluation": evaluation,
        "main": main,
        "headline": headline_numbers(choice, evaluation, main),
        "part": choice_part(choice, root),
        "grid": grid_rows(evaluation, root),
        "yardsticks": yardsticks(evaluation, main, _bounds(choice)),
        "families": score_families(evaluation),
        "missing": missing_lines(evaluation),
        "extremes": extremes(load_values(context.run), main, root),
        "pairs": pair_rows(evaluation, root),
        "triggers": trigger_strip(evaluation, main, root),
        "cards": cards,
        "mix_tables": tables,
        "confusion": confusion,
        "mixed": cards or tables or confusion,
    }


def _choice(context: StageContext) -> Choice | None:
    """None in a run from before there was anything to choose."""
    found = context.records.get(Choice)
    assert found is None or isinstance(found, Choice)
    return found


def _main(context: StageContext) -> Cell | None:
    choice = _choice(context)
    weight = choice.weight if choice else context.spec.evaluate.weight
    return main_cell(context.get(EvalReport), context.spec.name, weight)


def _bounds(choice: Choice | None) -> Mapping[str, float]:
    return choice.bounds if choice else {}


def _run(context: StageContext) -> Report:
    verdict = judge(context.spec, context.get(Trained), context.get(EvalReport), _choice(context))
    values = gather_page(context, verdict)
    write_atomic(context.workdir / context.run.report.name, render_page(TEMPLATE, values))
    write_json(context.workdir / context.run.report_json.name, report_json(context, verdict, values["headline"]))
    return Report(path=context.run.report.name, verdict=verdict.headline)


STAGE = Stage(
    name="report",
    version=2,
    record=Report,
    run=_run,
    reads=tuple(StyleSpec.model_fields),
    needs=NEEDS,
    publish="merge",
)
