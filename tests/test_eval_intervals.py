"""Do 95 % intervals hold the true value 95 times in 100? By simulation, beside what would not."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from eval.intervals import bootstrap_prompts, bootstrap_share, jackknife
from eval.kernel_distance import cubic, unbiased_mmd
from eval.metric import Interval


def holds(interval: Interval, truth: float) -> bool:
    assert interval.low is not None
    assert interval.high is not None
    return interval.low <= truth <= interval.high


def grid(random: np.random.Generator, prompts: int, seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """Values around 0 of which most of the spread is between prompts, as CLIP scores have it."""
    values = random.normal(size=(prompts, 1)) + 0.3 * random.normal(size=(prompts, seeds))
    return values.reshape(-1), np.repeat(np.arange(prompts), seeds)


@pytest.mark.parametrize("prompts", [2, 5, 8, 30])
def test_prompts_resampled_hold_the_truth_where_images_resampled_do_not(prompts: int):
    random = np.random.default_rng(3)
    ours = images = 0
    for _ in range(200):
        values, clusters = grid(random, prompts, 4)
        ours += holds(bootstrap_prompts(values, clusters), 0)
        half = 1.96 * values.std(ddof=1) / len(values) ** 0.5
        images += abs(values.mean()) <= half
    assert ours >= 0.90 * 200
    assert images <= 0.80 * 200


def test_the_jackknife_of_kid_holds_the_truth_where_the_naive_bootstrap_does_not():
    """Of two samples of one distribution the true distance is 0."""
    random = np.random.default_rng(5)
    ours = naive = 0
    for _ in range(60):
        x, y = random.normal(size=(40, 16)), random.normal(size=(60, 16))
        found = unbiased_mmd(x, y, cubic, np.arange(40))
        ours += holds(jackknife(found.value, [found.without_cluster, found.without_row], "images"), 0)
        draws = [
            unbiased_mmd(x[random.integers(0, 40, 40)], y[random.integers(0, 60, 60)], cubic, np.arange(40)).value
            for _ in range(60)
        ]
        low, high = np.quantile(draws, [0.025, 0.975])
        naive += low <= 0 <= high
    assert ours >= 0.90 * 60
    assert naive <= 0.50 * 60


def test_the_bootstrap_of_many_prompts_equals_scipys_but_for_the_widening():
    values = np.random.default_rng(7).normal(size=60)
    ours = bootstrap_prompts(values, np.arange(60))
    theirs = scipy.stats.bootstrap((values,), np.mean, method="percentile", rng=1).confidence_interval
    assert ours.low is not None
    assert ours.high is not None
    assert ours.high - ours.low == pytest.approx((theirs.high - theirs.low) * 1.03, rel=0.04)
    assert ours.method == "bootstrap over 60 prompts"


def test_few_prompts_have_the_t_interval_of_their_means():
    values, clusters = grid(np.random.default_rng(1), 5, 3)
    means = values.reshape(5, 3).mean(axis=1)
    expected = scipy.stats.t.interval(0.95, 4, loc=means.mean(), scale=scipy.stats.sem(means))
    found = bootstrap_prompts(values, clusters)
    assert (found.low, found.high) == pytest.approx(expected)


def test_an_interval_is_the_same_twice_and_does_not_hang_on_the_order_of_the_images():
    values, clusters = grid(np.random.default_rng(2), 20, 3)
    order = np.random.default_rng(3).permutation(60)
    first = bootstrap_prompts(values, clusters)
    assert bootstrap_prompts(values, clusters) == first
    again = bootstrap_prompts(values[order], clusters[order])
    assert (again.low, again.high) == pytest.approx((first.low, first.high))


def test_a_ratio_of_which_the_denominator_can_be_nothing_has_no_bounds():
    random = np.random.default_rng(4)
    columns = np.stack([1 + random.normal(size=20), 0.1 + random.normal(size=20)], axis=1)
    ratio = lambda means: np.where(means[..., 1] > 0, means[..., 0] / means[..., 1], np.nan)  # noqa: E731
    found = bootstrap_prompts(columns, np.arange(20), ratio)
    assert (found.low, found.high) == (None, None)
    assert found.method.startswith("none: no bounds")


def test_one_prompt_and_no_variation_have_no_interval_and_say_why():
    assert bootstrap_prompts(np.ones(4), np.zeros(4)).method == "none: a single prompt"
    assert bootstrap_prompts(np.ones(4), np.arange(4)).method == "none: the same without any one of 4 prompts"


def test_a_share_of_none_and_of_all_is_not_certain():
    none, every = bootstrap_share(np.zeros(20, bool), np.arange(20)), bootstrap_share(np.ones(20, bool), np.arange(20))
    exact = scipy.stats.binomtest(0, 20).proportion_ci(method="exact")
    assert (none.low, none.high) == pytest.approx((exact.low, exact.high))
    assert (every.low, every.high) == pytest.approx((1 - exact.high, 1))
    some = bootstrap_share(np.arange(40) % 4 == 0, np.repeat(np.arange(10), 4))
    assert some.high is None or some.high <= 1
