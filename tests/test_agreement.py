"""Predicted conflict is held against measured: rank correlation, its n and its interval."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from brushset.lora.agreement import PairName, compare_prediction


def pairs(*values: float) -> dict[PairName, float]:
    """Values for the pairs of so many adapters as it takes."""
    names = itertools.combinations("abcdefghijklmnop", 2)
    return {frozenset(pair): value for pair, value in zip(names, values, strict=False)}


def test_rho_is_spearmans_with_ties_at_their_mean_rank() -> None:
    found = compare_prediction(pairs(1, 2, 2, 4, 5), pairs(2, 1, 4, 4, 9))
    forecast, measured = [1, 2.5, 2.5, 4, 5], [2, 1, 3.5, 3.5, 5]
    mean = 3.0
    cross = sum((one - mean) * (other - mean) for one, other in zip(forecast, measured, strict=True))
    sizes = [math.sqrt(sum((one - mean) ** 2 for one in ranks)) for ranks in (forecast, measured)]
    assert found.rho == pytest.approx(cross / sizes[0] / sizes[1])
    assert found.n == 5


def test_perfect_order_of_few_pairs_claims_no_certainty() -> None:
    found = compare_prediction(pairs(1, 2, 3, 4, 5), pairs(1, 4, 9, 16, 25))
    assert (found.rho, found.high) == (pytest.approx(1), pytest.approx(1))
    assert found.low < 0.2
    reverse = compare_prediction(pairs(1, 2, 3, 4, 5), pairs(5, 4, 3, 2, 1))
    assert (reverse.rho, reverse.low) == (pytest.approx(-1), pytest.approx(-1))
    assert reverse.high == pytest.approx(-found.low)


def test_the_interval_holds_what_it_says() -> None:
    """Of 400 draws with a known ρ of 0.5 some 95 % cover it, and it narrows with n."""
    rng = random.Random(1)
    latent = 2 * math.sin(math.pi * 0.5 / 6)  # Pearson's r of normals whose Spearman is 0.5
    covered, widths = 0, []
    for _ in range(400):
        x = [rng.gauss(0, 1) for _ in range(28)]
        y = [latent * each + math.sqrt(1 - latent**2) * rng.gauss(0, 1) for each in x]
        found = compare_prediction(pairs(*x), pairs(*y))
        assert found.n == 28
        covered += found.low <= 0.5 <= found.high
        widths.append(found.high - found.low)
    assert 0.91 <= covered / 400 <= 0.99
    few = compare_prediction(pairs(*x[:6]), pairs(*y[:6]))
    assert few.high - few.low > 1.3 * sum(widths) / len(widths)


@pytest.mark.parametrize(
    ("forecast", "measured"), [([1.0, 2.0], [1.0, 2.0]), ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]), ([], [])]
)
def test_too_little_is_said_to_be_too_little(forecast: list[float], measured: list[float]) -> None:
    found = compare_prediction(pairs(*forecast), pairs(*measured))
    assert math.isnan(found.rho)
    assert (found.low, found.high) == (-1, 1)
    assert found.told() == f"no rank correlation over {len(forecast)} pairs: three that differ are the least"


def test_pairs_of_one_side_and_values_that_are_none_are_left_out_and_named() -> None:
    forecast, measured = pairs(1, 2, math.inf, 4), pairs(1, 2, 3, 4, 5)
    found = compare_prediction(forecast, measured)
    assert found.n == 3
    assert found.only_predicted == ()
    assert {tuple(sorted(pair)) for pair in found.only_measured} == {("a", "d"), ("a", "f")}
    assert found.told().startswith("Spearman ρ = 1.00 (95 % -1.00 to 1.00, n = 3 pairs)")
