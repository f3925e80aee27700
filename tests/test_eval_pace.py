"""Drawing stops when the minutes are spent: at the speed measured, evenly, and it says what was left out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from eval.pace import LEAST_PROMPTS, Pace, spread_order


class Clock:
    """Time that passes only as images are made, each in `per_image` seconds."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now, self.per_image = 0.0, 1.0
        patch.setattr("eval.pace.time.monotonic", lambda: self.now)

    def draw(self, images: int) -> None:
        self.now += images * self.per_image

    def pace(self, minutes: float, per_image_s: float = 0.0) -> Pace:
        return Pace(minutes, per_image_s, _started=self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def draw_all(pace: Pace, clock: Clock, prompts: Sequence[int], each: int = 10, **options: object) -> list[int]:
    drawn: list[int] = []
    for some in pace.slices(prompts, lambda some: each * len(some), **options):  # type: ignore[arg-type]
        clock.draw(each * len(some))
        drawn += some
    return drawn


@pytest.mark.parametrize("count", [1, 2, 5, 8, 50])
def test_every_beginning_of_the_order_is_spread_evenly(count: int) -> None:
    order = spread_order(count)
    assert sorted(order) == list(range(count))
    for many in range(2, count):
        some = [*sorted(order[:many]), count]
        assert max(b - a for a, b in itertools.pairwise(some)) <= 2 * (count / many) + 1


def test_without_a_budget_all_are_drawn_at_once(clock: Clock) -> None:
    assert list(Pace(None).slices([3, 1, 2], len)) == [[3, 1, 2]]


def test_a_round_that_turns_out_slower_than_thought_is_stopped_in_time(clock: Clock) -> None:
    pace = clock.pace(10.0, 1.0)  # 400 images would do, at a second each
    clock.per_image = 3.0
    drawn = draw_all(pace, clock, range(40))
    assert 10 < len(drawn) < 20
    assert clock.now * 1.3 <= 600  # and to look at them there is time too
    assert max(b - a for a, b in itertools.pairwise(sorted(drawn))) <= 7
    assert pace.left_out("25 of 40 prompts") == pace.notes[0]
    assert pace.notes[0] == "to keep to the budget of 10 minutes: 25 of 40 prompts, at 3.9 s an image"


def test_a_round_in_time_is_drawn_whole(clock: Clock) -> None:
    assert sorted(draw_all(clock.pace(60.0, 1.0), clock, range(40))) == list(range(40))


def test_the_fewest_and_those_that_are_shown_are_drawn_whatever_it_takes(clock: Clock) -> None:
    pace = clock.pace(0.01)
    drawn = draw_all(pace, clock, range(1, 40, 2), first=[1, 3, 5, 7])
    assert drawn == [1, 3, 5, 7]
    assert len(draw_all(clock.pace(0.01), clock, range(40))) == LEAST_PROMPTS


def test_what_is_reserved_is_left(clock: Clock) -> None:
    assert len(draw_all(clock.pace(10.0), clock, range(40), reserved=200)) < 30
    assert len(draw_all(clock.pace(10.0), clock, range(40))) == 40


def test_what_was_kept_from_elsewhere_says_nothing_of_the_speed(clock: Clock) -> None:
    pace = clock.pace(10.0, 1.0)
    assert len(draw_all(pace, clock, range(40), each=0)) == 40
    assert pace.per_image_s == 1.0
