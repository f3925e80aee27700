"""The stage `report`: report.html, one self-contained page that says what a run is worth and shows why.

The verdict stands first, and where a base or an encoder is made up it says that no number here is quality. Pictures
are small data URIs and plots inline SVG, so that the page can be mailed, printed and opened without a network. What
users wrote (captions, file names, prompts) is escaped by the template engine.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from brushset.files import write_atomic
from brushset.load import spec_text
from brushset.manifest import read_manifest
from brushset.page.captions import captions_part
from brushset.page.plots import plot_loss
from brushset.page.tables import grid_rows, sample_images, score_table, stage_times
from brushset.page.template import render_page
from brushset.page.training import training_samples
from brushset.page.verdict import Verdict, judge
from brushset.pipeline import Stage, StageContext, load_record
from brushset.records import (
    Adapter,
    Audit,
    Captions,
    EngineConfig,
    EvalReport,
    Exports,
    Prepared,
    Report,
    Trained,
)
from brushset.spec import StyleSpec

TEMPLATE = "report.html.j2"
NEEDS = ("audit", "preprocess", "caption", "configure", "train", "convert", "evaluate", "export")


def gather_page(context: StageContext, verdict: Verdict) -> dict[str, Any]:
    """Everything that the template shows."""
    root, captions, trained = context.run.root, context.get(Captions), context.get(Trained)
    evaluation = context.get(EvalReport)
    manifest = read_manifest(context.run)
    weights = root / trained.weights
    return {
        "spec": context.spec,
        "run": context.run,
        "verdict": verdict,
        "audit": context.get(Audit),
        "audit_findings": [item for item in context.get(Audit).findings if item.accepted or item.severity != "note"],
        "prepared": context.get(Prepared),
        "config": context.get(EngineConfig),
        "trained": trained,
        "adapter": context.get(Adapter),
        "evaluation": evaluation,
        "exports": context.get(Exports),
        "caption_sources": Counter(caption.source for caption in captions.captions).most_common(),
        "captions": captions_part(captions, context.get(Prepared)),
        "samples": sample_images(context.get(Prepared), captions, context.run.images),
        "grid": grid_rows(evaluation, root),
        "scores": score_table(evaluation),
        "loss_svg": plot_loss(trained.losses, trained.validation),
        "made": training_samples(trained, root),
        "times": stage_times({name: load_record(context.run, name) for name in NEEDS}),
        "weights_bytes": weights.stat().st_size if weights.is_file() else 0,
        "manifest": manifest,
        "spec_text": spec_text(context.spec),
    }


def _run(context: StageContext) -> Report:
    verdict = judge(context.spec, context.get(Trained), context.get(EvalReport))
    write_atomic(context.workdir / context.run.report.name, render_page(TEMPLATE, gather_page(context, verdict)))
    return Report(path=context.run.report.name, verdict=verdict.headline)


STAGE = Stage(
    name="report",
    record=Report,
    run=_run,
    reads=tuple(StyleSpec.model_fields),
    needs=NEEDS,
    publish="merge",
)
