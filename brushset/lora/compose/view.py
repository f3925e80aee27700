"""What every method of composing says of a step: which adapters are seen by the noise prediction, and how strongly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from brushset.lora.merge.weights import Weight

Mix = Sequence[tuple[str, Weight]]
"""Adapters by name, each with its weight; nobody stands in it twice."""


@dataclass(frozen=True)
class View:
    """One noise prediction: the adapters that are in the models for it, and its share of the step's prediction. The prompt
    is encoded with the same adapters at the same weights, since LoRAs that train the text encoder mean their own words.

    `restart`: between the step before and this one the prediction jumps, other adapters having come in. A multistep
    solver then drops what it keeps of earlier predictions, as at its first step: DPM++ 2M would otherwise draw a line
    through two models' predictions and overshoot by (A − B)/2r, an error of the step's size at each jump, which
    leaves the whole of first order. Solvers without memory have nothing to drop. Alike in all views of a step.
    """

    mix: tuple[tuple[str, Weight], ...]
    share: float = 1.0
    restart: bool = False


Course = Callable[[int, int], tuple[View, ...]]
"""(step, steps) → the views of that step, whose shares sum to 1. Their number is the same at every step."""
