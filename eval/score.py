"""From what extractors see to scores: every metric of the table, with what each number is worth."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from brushset.protocols import Emit
from brushset.records import Score
from eval.embedder import Identity
from eval.layout import RUN, Layout
from eval.look import Extractor, Missing
from eval.metric import ExtractorName, Measurement, NotMeasured
from eval.seen import Seen
from eval.style_classes import LEAST_AUC
from eval.table import METRICS, STYLE_ENCODERS


def score_grid(
    layout: Layout, seen: Mapping[ExtractorName, Seen], extractors: Mapping[ExtractorName, Extractor], emit: Emit
) -> list[Score]:
    """Every metric of everything it is measured of. An encoder that cannot tell styles apart gives no score of style."""
    scores = {f"style_auc_{name}": _scores_of(f"style_auc_{name}", layout, seen, extractors) for name in STYLE_ENCODERS}
    unfit = {name: reason for name in STYLE_ENCODERS if (reason := _unfit(scores[f"style_auc_{name}"][0]))}
    for done, (name, metric) in enumerate(METRICS.items()):
        emit("progress", what="scores", done=done, total=len(METRICS))
        if name in scores:
            continue
        reason = unfit.get(metric.extractor, "") if metric.style else ""
        scores[name] = _scores_of(name, layout, seen, extractors, reason=reason)
    emit("progress", what="scores", done=len(METRICS), total=len(METRICS))
    found = [score for name in METRICS for score in scores[name]]
    _tell(found, extractors, emit)
    return found


def why_unfit(encoder: ExtractorName, seen: Seen, identity: Identity) -> str:
    """Why one of STYLE_ENCODERS is not used for style; empty where it may be."""
    return _unfit(score_cell(f"style_auc_{encoder}", RUN, seen, identity))


def score_cell(name: str, cell: str, seen: Seen | None, identity: Identity, *, reason: str = "") -> Score:
    """One metric of one cell; where it cannot be measured, or must not for `reason`, the value is None and the note says so."""
    found = _measure(name, cell, seen, reason or identity.note or "its weights are not there", skip=bool(reason))
    score = Score(
        metric=name,
        cell=cell,
        value=None,
        n=0,
        higher_is_better=METRICS[name].higher_is_better,
        extractor=identity.id,
        meaningful=False,
        weights_sha256=identity.sha256,
    )
    if isinstance(found, str):
        return score.model_copy(update={"note": f"not measured: {found}"})
    return score.model_copy(
        update={
            "value": found.value,
            "n": found.n,
            "meaningful": identity.meaningful,
            "note": found.note,
            "low": found.interval.low,
            "high": found.interval.high,
            "interval": found.interval.method,
        }
    )


def _measure(name: str, cell: str, seen: Seen | None, without: str, *, skip: bool) -> Measurement | str:
    """The measurement, or why there is none."""
    if seen is None or skip:
        return without
    try:
        found = METRICS[name].measure(seen, cell)
    except (NotMeasured, RuntimeError, np.linalg.LinAlgError) as error:  # torch: full memory is a RuntimeError
        return str(error).splitlines()[0]
    return found if math.isfinite(found.value) else f"it came out as {found.value}"


def _scores_of(
    name: str, layout: Layout, seen: Mapping[ExtractorName, Seen], extractors: Mapping[ExtractorName, Extractor],
    *, reason: str = "",
) -> list[Score]:  # fmt: skip
    metric = METRICS[name]
    identity = extractors[metric.extractor].identity
    return [
        score_cell(name, cell, seen.get(metric.extractor), identity, reason=reason) for cell in metric.subjects(layout)
    ]


def _unfit(auc: Score) -> str:
    """Why an encoder is not used for style. One that is made up means nothing in any case, and shows that the code runs."""
    if auc.value is None or not auc.meaningful or auc.value >= LEAST_AUC:
        return ""
    return f"{auc.extractor} cannot tell the references' styles apart: AUC {auc.value:.2f}, below {LEAST_AUC}"


def _tell(scores: list[Score], extractors: Mapping[ExtractorName, Extractor], emit: Emit) -> None:
    for name, extractor in extractors.items():
        if isinstance(extractor, Missing):
            lost = [metric for metric, row in METRICS.items() if row.extractor == name]
            emit("warning", text=f"not measured: {', '.join(lost)}: {extractor.identity.note}")
    others = sum(score.value is None and _was_there(score, extractors) for score in scores)
    if others:
        emit("note", text=f"{others} scores could not be measured; eval/scores.json says why")


def _was_there(score: Score, extractors: Mapping[ExtractorName, Extractor]) -> bool:
    """Whether the network that a score looks through was to be had."""
    return not isinstance(extractors[METRICS[score.metric].extractor], Missing)
