"""Evaluation: the grid, and one file a metric. A new metric is one file and one line in `METRICS`."""

from __future__ import annotations

from eval.clip_score import measure_clip_score
from eval.fid import measure_fid
from eval.metric import Metric
from eval.style_similarity import measure_style_similarity

METRICS: dict[str, Metric] = {
    "clip_score": Metric(measure_clip_score, "clip", higher_is_better=True, compares=False),
    "style_similarity": Metric(measure_style_similarity, "clip", higher_is_better=True, compares=True),
    "fid": Metric(measure_fid, "inception", higher_is_better=False, compares=True),
}
