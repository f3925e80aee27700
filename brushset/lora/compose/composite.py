"""LoRA Composite: each adapter predicts by itself, and the mean is taken.

Zhong et al., "Multi-LoRA Composition for Image Generation", arXiv 2402.16843. With guidance s and N adapters
    ε = 1/N · Σᵢ [εᵢ(∅) + s·(εᵢ(c) − εᵢ(∅))]
where εᵢ is the model W + wᵢΔWᵢ, in the unconditional prediction too, with prompt and negative prompt encoded by that
adapter (theirs encodes them once, by all). N UNet passes a step. Nothing jumps, so solvers need no care.

The mean weakens: with δᵢ = εᵢ − ε₀ at weight 1 it is, to first order in the weights, ε₀ + Σ wᵢδᵢ/N, an N-th of what
the weighted sum does; the paper weighs all at 0.8. With `shares = "weights"` each adapter acts at Σwⱼ and has the share
wᵢ/Σwⱼ, so that it is ε₀ + Σ wᵢδᵢ, to first order the weighted sum, without what the adapters do to one another.
"""

from __future__ import annotations

from brushset.errors import UsageError
from brushset.lora.compose.method import EQUAL, SHARES, Options
from brushset.lora.compose.view import Course, Mix, View


def composite(mix: Mix, options: Options) -> Course:
    """A view for each adapter.

    Raises:
        UsageError: an unknown way of sharing, or weights that are no shares.
    """
    if options.shares not in SHARES:
        raise UsageError(f"composite: shares = {options.shares}: must be one of {', '.join(SHARES)}")
    views = tuple(View((each,), 1 / len(mix)) for each in mix) if options.shares == EQUAL else _by_weight(mix)

    def course(_step: int, _steps: int) -> tuple[View, ...]:
        return views

    return course


def _by_weight(mix: Mix) -> tuple[View, ...]:
    if low := [f"{name}:{weight.told()}" for name, weight in mix if weight.whole <= 0]:
        raise UsageError(f"composite: {', '.join(low)}: shares by weight need weights above 0")
    total = sum(weight.whole for _, weight in mix)
    return tuple(View(((name, weight.times(total / weight.whole)),), weight.whole / total) for name, weight in mix)
