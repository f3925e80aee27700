"""Whether predicted conflict is met by measured mixes: rank correlation over pairs of adapters, with its interval.

Spearman's ρ of prediction and measurement, ties at their mean rank; interval by Fisher's z with the variance
(1 + ρ²/2)/(n − 3) (Bonett and Wright, Psychometrika 65, 2000). +1: pairs predicted higher are measured higher. Below n
= 4 no interval exists, and it is told as all of −1 to 1. Pairs that share an adapter are not independent: with few
adapters the interval is narrower than it should be, and ρ says nothing on how far the measurement moves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

PairName = frozenset[str]
_NORMAL_975 = 1.959964


@dataclass(frozen=True)
class Agreement:
    """ρ over `n` pairs with its 95 % interval; ρ is NaN where there are fewer than three or all on one side are equal.
    `only_predicted` and `only_measured` are pairs that the other side lacks, which are left out.
    """

    n: int
    rho: float
    low: float
    high: float
    only_predicted: tuple[PairName, ...] = ()
    only_measured: tuple[PairName, ...] = ()

    def told(self) -> str:
        """One line."""
        if math.isnan(self.rho):
            return f"no rank correlation over {self.n} pairs: three that differ are the least"
        return f"Spearman ρ = {self.rho:.2f} (95 % {self.low:.2f} to {self.high:.2f}, n = {self.n} pairs)"


def compare_prediction(predicted: Mapping[PairName, float], measured: Mapping[PairName, float]) -> Agreement:
    """Pair of adapters → what was predicted of it, and what was measured; infinite and NaN values are left out with
    their pair.
    """
    forecast, found = _finite(predicted), _finite(measured)
    shared = sorted(forecast.keys() & found.keys(), key=sorted)
    rho = _spearman([forecast[pair] for pair in shared], [found[pair] for pair in shared])
    low, high = _interval(rho, len(shared))
    return Agreement(
        n=len(shared),
        rho=rho,
        low=low,
        high=high,
        only_predicted=tuple(sorted(forecast.keys() - found.keys(), key=sorted)),
        only_measured=tuple(sorted(found.keys() - forecast.keys(), key=sorted)),
    )


def _finite(values: Mapping[PairName, float]) -> dict[PairName, float]:
    return {pair: value for pair, value in values.items() if math.isfinite(value)}


def _spearman(forecast: list[float], found: list[float]) -> float:
    from scipy.stats import spearmanr

    if len(forecast) < 3 or len(set(forecast)) == 1 or len(set(found)) == 1:
        return math.nan
    return float(spearmanr(forecast, found).statistic)


def _interval(rho: float, n: int) -> tuple[float, float]:
    if math.isnan(rho) or n < 4:
        return -1.0, 1.0
    most = 1 - 12 / (n**3 - n)  # two neighbours changed over: at ρ = 1 Fisher's z would claim certainty from four pairs
    held = max(-most, min(most, rho))
    half = _NORMAL_975 * math.sqrt((1 + held**2 / 2) / (n - 3))
    low, high = (math.tanh(math.atanh(held) + side * half) for side in (-1, 1))
    return min(low, rho), max(high, rho)
