"""Whom successive halving trains longer."""

from __future__ import annotations

import random

import pytest

from brushset.spec import TrainSection
from brushset.sweeps.halving import choose_promotions, choose_rungs, rung_settings


@pytest.mark.parametrize(("settings", "epochs", "rungs"), [(1, 20, 1), (2, 20, 1), (3, 20, 2), (9, 20, 3), (27, 20, 3), (27, 27, 4), (100, 2, 1)])  # fmt: skip
def test_rungs_leave_one_at_the_top_and_an_epoch_at_the_bottom(settings: int, epochs: int, rungs: int) -> None:
    assert choose_rungs(TrainSection(epochs=epochs), settings) == rungs


def test_a_rung_trains_a_share_of_the_epochs_and_of_what_rules_repeats() -> None:
    train = TrainSection(epochs=18, target_steps=900)
    assert rung_settings(train, 0, 3) == {"train.epochs": 2, "train.target_steps": 100}
    assert rung_settings(train, 1, 3) == {"train.epochs": 6, "train.target_steps": 300}
    assert rung_settings(train, 2, 3) == {}
    assert rung_settings(TrainSection(max_steps=9), 1, 3)["train.max_steps"] == 3
    assert "train.target_steps" not in rung_settings(TrainSection(repeats=2), 0, 3)


def test_the_best_third_goes_on_as_soon_as_three_are_there() -> None:
    nobody: list[set[str]] = [set(), set()]
    assert choose_promotions([{"a": 0.1, "b": 0.9}, {}], nobody, over=False) == []
    assert choose_promotions([{"a": 0.1, "b": 0.9, "c": 0.5}, {}], nobody, over=False) == [("b", 1)]
    assert choose_promotions([{"a": 0.1, "b": 0.9, "c": 0.5}, {}], [set(), {"b"}], over=False) == []


def test_who_waited_goes_on_once_the_quota_grows() -> None:
    scores = {name: float(number) for number, name in enumerate("abcdef")}
    assert choose_promotions([scores, {}], [set(), {"f"}], over=False) == [("e", 1)]


def test_fewer_than_a_third_still_have_a_best_one_once_all_is_over() -> None:
    assert choose_promotions([{"a": 0.1, "b": 0.9}, {}], [set(), set()], over=True) == [("b", 1)]
    assert choose_promotions([{"a": 0.1, "b": 0.9}, {}], [set(), {"a"}], over=True) == []
    assert choose_promotions([{}, {}], [set(), set()], over=True) == []


def test_whatever_the_order_the_top_is_reached_by_good_ones_at_the_price_of_the_paper() -> None:
    dice = random.Random(1)
    for _ in range(50):
        truth = {number: dice.random() for number in range(27)}
        queue = [(number, 0) for number in dice.sample(range(27), 27)]
        scores: list[dict[int, float]] = [{} for _ in range(4)]
        started: list[set[int]] = [set(range(27)), set(), set(), set()]
        while queue:
            number, rung = queue.pop(0)
            scores[rung][number] = truth[number]
            for each, above in choose_promotions(scores, started, over=not queue):
                started[above].add(each)
                queue.append((each, above))
        assert scores[3]
        best = sorted(truth, key=lambda each: -truth[each])
        assert best[0] in scores[3]
        assert 9 <= len(scores[1]) <= 14
        assert len(scores[3]) <= 4
