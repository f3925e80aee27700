"""Each way of composing is its paper's formula, and solvers go to one limit with it: held against definitions of our own,
on models whose predictions are known in closed form.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brushset.errors import UsageError
from brushset.lora.compose import METHODS, Course, Mix, Options, View, compose, default_method
from brushset.lora.compose.method import effective_weights
from brushset.lora.compose.progress import Schedule, parse_schedule
from brushset.lora.merge.weights import Weight, parse_weight

A, B, C = "anime", "watercolor", "cartoon"
TWO: Mix = [(A, Weight(0.6)), (B, Weight(0.4))]


def active(course: Course, steps: int) -> list[dict[str, float]]:
    """Adapters and weights of each step, of a course of one view."""
    return [{name: weight.whole for name, weight in course(step, steps)[0].mix} for step in range(steps)]


def step_sums(course: Course, steps: int) -> list[float]:
    """Σ share × weight of every step."""
    return [
        math.fsum(view.share * weight.whole for view in course(step, steps) for _, weight in view.mix)
        for step in range(steps)
    ]


def restarts(course: Course, steps: int) -> list[int]:
    return [step for step in range(steps) if course(step, steps)[0].restart]


def scheduled(**texts: str) -> Course:
    schedules = {name: parse_schedule(text, f"{name}:{text}") for name, text in texts.items()}
    return compose(None, [(name, each.peak) for name, each in schedules.items()], Options(schedules=schedules))


def test_weighted_is_all_of_them_in_every_step() -> None:
    course = compose(None, TWO)
    assert {course(step, 20) for step in range(20)} == {(View(tuple(TWO)),)}
    by_part = parse_weight("0.6,text=0.3,up=0.8", "x")
    assert compose("weighted", [(A, by_part)])(3, 20)[0].mix == ((A, by_part),)


def test_normalised_weights_sum_to_one() -> None:
    course = compose("weighted", [(A, parse_weight("1.2,text=0.6", "x")), (B, Weight(0.4))], Options(normalised=True))
    (view,) = course(0, 20)
    assert [weight.told() for _, weight in view.mix] == ["0.75,text=0.375", "0.25"]


def test_switch_takes_turns_of_five_steps() -> None:
    course = compose("switch", [*TWO, (C, Weight(0.8))])
    by_the_paper = [[A, B, C][(step // 5) % 3] for step in range(25)]
    assert [next(iter(found)) for found in active(course, 25)] == by_the_paper
    assert all(len(found) == 1 for found in active(course, 25))
    assert active(course, 25)[5] == {B: 0.4}
    assert restarts(course, 25) == [5, 10, 15, 20]


def test_switch_of_one_adapter_never_starts_anew() -> None:
    course = compose("switch", TWO[:1], Options(every=2))
    assert restarts(course, 10) == []
    assert {course(step, 10) for step in range(10)} == {compose("weighted", TWO[:1])(0, 10)}


def test_composite_gives_each_an_equal_share() -> None:
    course = compose("composite", [*TWO, (C, Weight(0.8))])
    assert course(7, 20) == tuple(
        View(((name, Weight(weight)),), 1 / 3) for name, weight in [(A, 0.6), (B, 0.4), (C, 0.8)]
    )


def test_composite_by_weight_is_as_strong_as_the_weighted_sum() -> None:
    course = compose("composite", TWO, Options(shares="weights"))
    views = course(0, 20)
    assert [(view.mix[0][0], view.mix[0][1].whole, view.share) for view in views] == [(A, 1.0, 0.6), (B, 1.0, 0.4)]
    assert effective_weights(course, 20) == pytest.approx(effective_weights(compose(None, TWO), 20))


def test_total_strength_of_each_method_is_stated() -> None:
    strengths = {name: math.fsum(effective_weights(compose(name, TWO), 20).values()) for name in METHODS}
    assert strengths == pytest.approx({"weighted": 1.0, "schedule": 1.0, "switch": 0.5, "composite": 0.5})
    ramps = scheduled(anime="0.8→0", watercolor="0→0.8")
    assert step_sums(ramps, 9) == pytest.approx([0.8] * 9)
    assert effective_weights(ramps, 9) == pytest.approx({A: 0.4, B: 0.4})


@pytest.mark.parametrize("name", sorted(METHODS))
@given(count=st.integers(1, 4), steps=st.integers(16, 40), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_shares_sum_to_one_and_views_are_as_many_at_every_step(name: str, count: int, steps: int, seed: int) -> None:
    mix = [(f"style{index}", Weight(0.1 + (seed + index) % 7 / 7)) for index in range(count)]
    course = compose(name, mix)
    for step in range(steps):
        views = course(step, steps)
        assert math.fsum(view.share for view in views) == pytest.approx(1)
        assert len(views) == (count if name == "composite" else 1)
        assert len({view.restart for view in views}) == 1


@pytest.mark.parametrize("name", sorted(METHODS))
def test_one_adapter_alone_is_the_same_in_every_method(name: str) -> None:
    course = compose(name, [(A, Weight(0.8))])
    assert {course(step, 12) for step in range(12)} == {(View(((A, Weight(0.8)),)),)}


def test_a_mix_of_nothing_is_the_base_model() -> None:
    for name in METHODS:
        assert compose(name, [])(0, 20) == (View(()),)


@pytest.mark.parametrize("steps", [4, 10, 20, 24, 50])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75, 0.9])
def test_a_part_has_its_share_of_the_steps(share: float, steps: int) -> None:
    first, second = scheduled(anime=f"0.8@0-{share}"), scheduled(anime=f"0.8@{share}-1")
    on = [A in found for found in active(first, steps)]
    assert on == sorted(on, reverse=True)
    assert abs(sum(on) - share * steps) < 1
    if (share * steps).is_integer():
        assert sum(on) == share * steps
    assert [A in found for found in active(second, steps)] == [not each for each in on]
    assert restarts(first, steps) == restarts(second, steps) == [sum(on)]


def test_ramps_reach_both_ends() -> None:
    assert [found.get(A, 0) for found in active(scheduled(anime="0~0.8"), 5)] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    course = scheduled(anime="0.2->0.8@0.5-1")
    assert [found.get(A, 0) for found in active(course, 5)] == pytest.approx([0, 0, 0.2, 0.5, 0.8])
    assert restarts(course, 5) == [2]
    assert restarts(scheduled(anime="0→0.8@0.5-1"), 5) == []


def test_points_are_joined_by_lines_and_held_outside() -> None:
    schedule = parse_schedule("0@0.2→0.8@0.4→0.8@0.6→0.1@0.6", "x")
    found = [schedule.at(progress).whole for progress in (0, 0.2, 0.3, 0.4, 0.5, 0.6, 1)]
    assert found == pytest.approx([0, 0, 0.4, 0.8, 0.8, 0.1, 0.1])
    assert schedule.jumps(0.5, 0.6)
    assert not schedule.jumps(0.6, 1)
    assert not schedule.jumps(0, 0.5)


def test_parts_of_a_model_are_scheduled_too() -> None:
    schedule = parse_schedule("0.2,text=0→0.8,up=1", "x")
    half = schedule.at(0.5)
    modules = {
        "lora_te_text_model_encoder_layers_1_mlp_fc1": 0.4,  # from 0, as said, to 0.8, as all
        "lora_unet_up_blocks_1_attentions_0_proj_in": 0.6,  # from 0.2, as all, to 1, as said
        "lora_unet_mid_block_attentions_0_proj_in": 0.5,
    }
    assert {name: half.of(name) for name in modules} == pytest.approx(modules)


@given(
    points=st.lists(st.tuples(st.integers(0, 20), st.integers(-20, 20)), min_size=1, max_size=5),
    progress=st.floats(0, 1),
)
@settings(max_examples=50, deadline=None)
def test_a_schedule_is_read_back_as_it_is_told(points: list[tuple[int, int]], progress: float) -> None:
    schedule = Schedule(tuple((at / 20, Weight(weight / 10)) for at, weight in sorted(points)))
    again = parse_schedule(schedule.told(), "x")
    assert again.at(progress).whole == pytest.approx(schedule.at(progress).whole)


def test_a_schedule_of_one_weight_is_weighted() -> None:
    course, plain = scheduled(anime="0.6", watercolor="0.4"), compose("weighted", TWO)
    assert [course(step, 9) for step in range(9)] == [plain(step, 9) for step in range(9)]
    assert parse_schedule("0.6,text=0.3", "x").constant == parse_weight("0.6,text=0.3", "x")
    assert parse_schedule("0.6@0-0.5", "x").constant is None


def test_switch_is_a_schedule_of_turns() -> None:
    turns = scheduled(
        anime="1@0→1@0.25→0@0.25→0@0.5→1@0.5→1@0.75→0@0.75", watercolor="0@0.25→1@0.25→1@0.5→0@0.5→0@0.75→1@0.75"
    )
    course = compose("switch", [(A, Weight(1.0)), (B, Weight(1.0))])
    assert [turns(step, 20) for step in range(20)] == [course(step, 20) for step in range(20)]


def test_normalised_schedules_sum_to_one_where_anything_is_on() -> None:
    schedules = {A: parse_schedule("0.8@0-0.5", A), B: parse_schedule("0.4@0-0.75", B)}
    course = compose(None, TWO, Options(schedules=schedules, normalised=True))
    assert step_sums(course, 8) == pytest.approx([1] * 6 + [0] * 2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0.8@0.5", "FROM-TO between 0 and 1, such as 0.8@0-0.5"),
        ("0.8@", "FROM-TO between 0 and 1"),
        ("0.8@0.6-0.2", "FROM must be below TO"),
        ("0.8@0.5-0.5", "holds no step"),
        ("0.8@0-12", "@12: progress is a number from 0"),
        ("0.8@a-b", "@a: progress is a number from 0"),
        ("0.8@-0.5", "@: progress is a number from 0"),
        ("0@0→1@0.5-1", "each weight has its own @PROGRESS"),
        ("0@0→1", "each weight has its own @PROGRESS"),
        ("0@0.5→1@0.2", "points must rise"),
        ("→0.8", "weight ''"),
        ("0.8→", "weight ''"),
        ("x@0-1", "weight 'x'"),
        ("0.8,side=1@0-1", "'side=1' is no PART=WEIGHT"),
    ],
)
def test_a_schedule_that_is_none_is_refused_by_name(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_schedule(text, f"anime:{text}")
    assert str(caught.value).startswith(f"anime:{text}: ")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("method", "mix", "options", "said"),
    [
        (
            "switsch",
            TWO,
            Options(),
            "--method switsch: no such method; there are: weighted, schedule, switch, composite",
        ),
        ("weighted", [*TWO, TWO[0]], Options(), "anime: stands twice in one mix"),
        (
            "composite",
            TWO,
            Options(normalised=True),
            "composite: does not take normalised; it is for weighted, schedule",
        ),
        ("weighted", TWO, Options(every=3), "weighted: does not take every; it is for switch"),
        ("switch", [*TWO, (C, Weight(0.0))], Options(), "cartoon: weight 0 would leave switch the base model"),
        ("switch", TWO, Options(every=0), "switch: every = 0"),
        ("composite", TWO, Options(shares="fair"), "shares = fair: must be one of equal, weights"),
        ("composite", [(A, Weight(-0.5)), TWO[1]], Options(shares="weights"), "anime:-0.5: shares by weight need"),
        ("weighted", [(A, Weight(-1.0)), TWO[1]], Options(normalised=True), "the weights sum to -0.6"),
        (
            None,
            TWO,
            Options(schedules={C: Schedule.always(Weight(1.0))}),
            "cartoon: has a schedule and is not in the mix",
        ),
        (None, TWO, Options(schedules={A: Schedule.always(Weight(0.0))}), "anime: its weight is 0 at every step"),
    ],
)
def test_what_cannot_be_composed_is_refused_by_name(method: str | None, mix: Mix, options: Options, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        compose(method, mix, options)
    assert said in str(caught.value)


def test_switch_says_when_an_adapter_would_have_no_turn() -> None:
    course = compose("switch", [*TWO, (C, Weight(0.8))])
    with pytest.raises(
        UsageError, match="switch: 10 steps in turns of 5 never come to cartoon; fix: turns of 3, or 11"
    ):
        course(0, 10)
    assert active(course, 11)[10] == {C: 0.8}


def test_schedule_is_the_method_where_weights_change() -> None:
    assert default_method(Options()) == "weighted"
    assert default_method(Options(schedules={A: parse_schedule("0~1", A)})) == "schedule"


# Solvers. Data are Gaussian in each model, so that ε is known: x_t ~ N(αμ, α²s² + σ²), ε = σ(x − αμ)/(α²s² + σ²).

NOISIEST, CLEAREST = -4.0, 2.5  # λ = log(α/σ)
CENTRES = {A: (1.0, 0.5), B: (-0.6, 1.4)}  # (μ, s) of the model with that adapter at weight 1; a base at (0.2, 1)
Predict = Callable[[Course, float, float, int, int], float]


def noise_levels(half_log_ratio: float) -> tuple[float, float]:
    sigma = 1 / math.sqrt(1 + math.exp(2 * half_log_ratio))
    return math.sqrt(1 - sigma**2), sigma


def epsilon(view: View, x: float, level: float) -> float:
    """ε₀ + Σ w(ε_i − ε₀): what a model with adapters at weights predicts, where they add up."""
    alpha, sigma = noise_levels(level)

    def gaussian(mean: float, deviation: float) -> float:
        return sigma * (x - alpha * mean) / (alpha**2 * deviation**2 + sigma**2)

    base = gaussian(0.2, 1.0)
    return base + math.fsum(weight.whole * (gaussian(*CENTRES[name]) - base) for name, weight in view.mix)


def clean(course: Course, x: float, level: float, step: int, steps: int) -> float:
    """The prediction of x₀ of a step: the views' ε by their shares."""
    alpha, sigma = noise_levels(level)
    views = course(step, steps)
    return (x - sigma * math.fsum(view.share * epsilon(view, x, level) for view in views)) / alpha


def sample(course: Course, steps: int, *, multistep: bool, heed: bool = True) -> float:
    """DDIM, or DPM-Solver++ 2M (arXiv 2211.01095, algorithm 2), on levels even in λ, to the last of them.
    A restart is heeded by a step of first order, unless `heed` is False.
    """
    x, kept, width = 0.7, math.nan, (CLEAREST - NOISIEST) / (steps - 1)
    levels = [NOISIEST + width * step for step in range(steps)]
    for step, (level, following) in enumerate(pairwise(levels)):
        predicted = clean(course, x, level, step, steps)
        first = not multistep or step == 0 or (heed and course(step, steps)[0].restart)
        drawn = predicted if first else 1.5 * predicted - 0.5 * kept  # r = 1
        (_, sigma), (alpha, below) = noise_levels(level), noise_levels(following)
        x = below / sigma * x - alpha * math.expm1(level - following) * drawn
        kept = predicted
    return x


def orders(course: Callable[[int], Course], limit: float, **how: Any) -> list[float]:
    """log₂ of how much the error falls from n − 1 to 2(n − 1) steps."""
    errors = [abs(sample(course(steps), steps, **how) - limit) for steps in (129, 257, 513)]
    return [math.log2(before / after) for before, after in pairwise(errors)]


COURSES: dict[str, Callable[[int], Course]] = {
    "weighted": lambda _: compose("weighted", TWO),
    "composite": lambda _: compose("composite", TWO),
    "jump": lambda _: scheduled(anime="1@0-0.5", watercolor="1@0.5-1"),
    "ramp": lambda _: scheduled(anime="1→0", watercolor="0→1"),
    "turns": lambda steps: compose("switch", [(A, Weight(1.0)), (B, Weight(1.0))], Options(every=(steps - 1) // 4)),
}


@pytest.mark.parametrize("name", sorted(COURSES))
def test_ddim_and_dpm_go_to_one_limit_each_by_its_order(name: str) -> None:
    course = COURSES[name]
    limit = sample(course(4097), 4097, multistep=True)
    single, fine = sample(course(2049), 2049, multistep=False), sample(course(4097), 4097, multistep=False)
    assert 2 * fine - single == pytest.approx(limit, abs=2e-6)  # Richardson: two solvers, one limit
    assert orders(course, limit, multistep=False) == pytest.approx([1, 1], abs=0.15)
    assert orders(course, limit, multistep=True) == pytest.approx([2, 2], abs=0.2)


@pytest.mark.parametrize("name", ["jump", "turns"])
def test_without_starting_anew_a_jump_costs_dpm_its_order(name: str) -> None:
    course = COURSES[name]
    limit = sample(course(4097), 4097, multistep=True)
    assert orders(course, limit, multistep=True, heed=False) == pytest.approx([1, 1], abs=0.2)
    right, wrong = (abs(sample(course(33), 33, multistep=True, heed=heed) - limit) for heed in (True, False))
    assert right < 0.5 * wrong


def test_switch_in_many_short_turns_is_composite() -> None:
    """As its turns get short against the whole, only their mean is felt."""
    mix = [(A, Weight(1.0)), (B, Weight(1.0))]
    limit = sample(compose("composite", mix), 4097, multistep=True)
    for multistep in (False, True):
        errors = [
            abs(sample(compose("switch", mix), steps, multistep=multistep) - limit) for steps in (641, 1281, 2561)
        ]
        assert [before / after for before, after in pairwise(errors)] == pytest.approx([2, 2], abs=0.3)
