"""CLIP score: how well an image shows what the prompt says.

    CLIPScore = max(100 · mean over images of cos(E_image, E_text), 0)
    difference to base = 100 · mean over places of (cos(adapter's image, text) − cos(base's image, text))

Source: Hessel et al. 2021 (arXiv 2104.08718) in torchmetrics' scale: 100 · cosine, clamped after the mean; a test holds
it against torchmetrics' own. Higher is better, as a difference to the base at the same prompts and seeds; its level
depends on the prompts and on the CLIP more than on any adapter. Least sensible n: some 50 prompts. It does not measure
style, nor quality: over 120 rated composites its correlation with people's judgement of composition was -0.006
(Multi-LoRA-Composition's human_eval/results.json, recomputed).

The text is the prompt without trigger and style words: those would move the text, not the image.
"""

from __future__ import annotations

import numpy as np

from eval.intervals import bootstrap_prompts
from eval.metric import Measurement, NotMeasured
from eval.seen import Seen

SCALE = 100
_NOTE = "scale 0 to 100; text: the prompt without trigger and style words"


def measure_clip_score(seen: Seen, cell: str) -> Measurement:
    """The score of a cell, 0 to 100."""
    each = SCALE * prompt_cosines(seen, cell)
    interval = bootstrap_prompts(each, seen.prompts).within(0.0, SCALE)
    return Measurement(max(float(each.mean()), 0.0), len(each), interval, _NOTE)


def measure_clip_difference(seen: Seen, cell: str) -> Measurement:
    """By how many points the prompts are followed better than by the base, pair by pair."""
    each = SCALE * (prompt_cosines(seen, cell) - prompt_cosines(seen, seen.layout.base))
    note = "points of 100; paired with the base at the same prompts and seeds"
    return Measurement(float(each.mean()), len(each), bootstrap_prompts(each, seen.prompts), note)


def prompt_cosines(seen: Seen, cell: str) -> np.ndarray:
    """The cosine of each image of a cell to its prompt's text, float64 [N]."""
    rows = seen.of(cell)
    if seen.texts is None:
        raise NotMeasured("this encoder reads no text")
    return np.einsum("nd,nd->n", rows.astype(np.float64), seen.texts.astype(np.float64))
