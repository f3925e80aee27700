"""From shares of styles to weights of adapters, by what is recommended of each style alone.

    wᵢ = c · sᵢ · rᵢ        sᵢ: share; rᵢ: recommended weight of the style alone
    c = min(Σs / Σ sᵢrᵢ, 1 / max sᵢ)

An overtrained adapter that is at its best at 0.4 would drown another at equal weights, so shares count in what each style
is at its best. The sum stays that of the shares, 1 by default, so that a mix is as strong as one adapter at 1; but none
goes beyond what it is recommended at alone, where it is known to be good. Two styles of one recommended weight get the
shares themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from brushset.generator import Options
from brushset.lora.compose.method import BY_WEIGHT, SWITCH_EVERY

_STEP = 100  # weights are told to two places: less cannot be seen, and people type them


@dataclass(frozen=True)
class Ingredient:
    """A style of a mix; `weight` is what is recommended of it alone."""

    style: str
    trigger: str
    weight: float


def weights_of(shares: Sequence[float], recommended: Sequence[float]) -> tuple[float, ...]:
    """The formula above, cut to two places so that the sum stays below."""
    products = [share * weight for share, weight in zip(shares, recommended, strict=True)]
    scale = min(sum(shares) / sum(products), 1 / max(shares))
    return tuple(_cut(scale * product) for product in products)


def method_weights(method: str, weights: Sequence[float], recommended: Sequence[float]) -> tuple[float, ...]:
    """With which weights a method does about what the weighted sum does with `weights`: Switch shows each of N adapters in
    an N-th of the steps, so N times as strong, but not beyond what is recommended of it alone.
    """
    if method != "switch":
        return tuple(weights)
    count = len(weights)
    return tuple(_cut(min(count * weight, most)) for weight, most in zip(weights, recommended, strict=True))


def method_options(method: str, count: int, steps: int) -> Options:
    """What a method is told besides: turns of which every adapter has one in so few steps; Composite's shares by weight,
    which is the weighted sum to first order.
    """
    if method == "switch":
        return Options(every=max(1, min(SWITCH_EVERY, steps // count)))
    return Options(shares=BY_WEIGHT) if method == "composite" else Options()


def unevenness(shares: Sequence[float]) -> float:
    """0 where all are equal."""
    return max(shares) - min(shares)


def _cut(weight: float) -> float:
    return max(math.floor(weight * _STEP + 1e-6), 1) / _STEP
