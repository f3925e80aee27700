"""Choosing, without an image: who is feasible, who leads, who is tied, who goes on, and what a budget leaves out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from brushset.chosen import KeptFile, kept_files
from brushset.records import Candidate, Checkpoint, EpochLoss, Estimate, Trained, ValidationPoint
from brushset.spec import EvaluateSection
from eval.choose.budget import Budget
from eval.choose.candidates import Lineup, Way, far_worse, find_lineup, listed, lowest_loss, thinned
from eval.choose.measure import retention_difference, tells_from_base
from eval.choose.plan import Plan, cut_note, full_plan, halves, within
from eval.choose.reason import by_retention
from eval.choose.rule import Bounds, choose, front, is_hopeless, judge, knee, survivors, way
from eval.layout import Layout
from eval.seen import Seen

BOUNDS = Bounds(min_fidelity=-1.5, min_diversity=0.8, max_memorisation=0.03)
NOBODY_BEATS = lambda *_: False  # noqa: E731 - as a value it reads best
EVERYBODY_BEATS = lambda *_: True  # noqa: E731


def about(value: float | None, half: float = 0.0) -> Estimate:
    if value is None:
        return Estimate(value=None, note="was not measured: no weights")
    return Estimate(value=value, low=value - half, high=value + half)


def candidate(
    epoch: int, weight: float, rho: float | None, *, half: float = 0.05, clip: float | None = 0.0,
    clip_half: float = 0.2, div: float | None = 1.0, mem: float | None = 0.0, mem_half: float = 0.005,
) -> Candidate:  # fmt: skip
    found = Candidate(
        weights=f"weights/{epoch}", epoch=epoch, weight=weight, round=1, images=12, retention=about(rho, half),
        fidelity=about(clip, clip_half), diversity=about(div, 0.1), memorisation=about(mem, mem_half), feasible=None,
    )  # fmt: skip
    return judge(found, BOUNDS)


def beats_by(differences: dict[tuple[Way, Way], bool]):
    return lambda one, other: differences.get((one, other), True)


def test_each_bound_is_judged_at_its_own_end_of_the_interval():
    assert candidate(1, 1, 0.5, clip=-1.2, clip_half=0.2).feasible is True
    fidelity = candidate(1, 1, 0.5, clip=-1.4, clip_half=0.2)
    assert (fidelity.feasible, fidelity.breaks) == (False, ("fidelity",))
    assert "at least -1.5 is wanted" in fidelity.reasons[0]
    assert candidate(1, 1, 0.5, mem=0.02, mem_half=0.005).feasible is True
    assert candidate(1, 1, 0.5, mem=0.028, mem_half=0.005).breaks == ("memorisation",)
    assert candidate(1, 1, 0.5, div=0.79).breaks == ("diversity",)
    assert candidate(1, 1, 0.5, clip=-9, div=0.1, mem=0.3).breaks == ("fidelity", "diversity", "memorisation")


def test_what_could_not_be_measured_is_said_and_is_neither_feasible_nor_not():
    found = candidate(1, 1, 0.5, mem=None)
    assert (found.feasible, found.breaks) == (None, ())
    assert found.reasons == ("memorisation was not measured: no weights",)
    assert candidate(1, 1, 0.5, mem=None, clip=-5).feasible is False


def test_the_highest_lower_bound_leads_not_the_highest_value():
    sure, lucky = candidate(3, 0.8, 0.60, half=0.02), candidate(5, 0.8, 0.65, half=0.30)
    pick = choose([sure, lucky], BOUNDS, EVERYBODY_BEATS)
    assert pick
    assert (pick.leader, pick.chosen, pick.feasible) == (sure, sure, True)


def test_ties_go_to_the_earlier_epoch_then_to_the_lower_weight():
    found = [candidate(4, 1.0, 0.60), candidate(4, 0.8, 0.60), candidate(6, 0.6, 0.62), candidate(2, 0.6, 0.40)]
    last, early = Way(6, 0.6), Way(2, 0.6)
    pick = choose(found, BOUNDS, lambda one, other: one == last and other == early)
    assert pick
    assert (way(pick.leader), way(pick.chosen)) == (last, Way(4, 0.8))
    assert {way(each) for each in pick.tied} == {Way(4, 1.0), last}


def test_a_sure_difference_is_no_tie_however_the_intervals_overlap():
    early, late = candidate(2, 0.8, 0.60, half=0.2), candidate(8, 0.8, 0.66, half=0.2)
    pick = choose([early, late], BOUNDS, EVERYBODY_BEATS)
    assert pick
    assert pick.chosen is late


def test_the_infeasible_are_not_chosen_however_much_they_keep():
    pick = choose([candidate(9, 1, 0.9, mem=0.2), candidate(3, 0.8, 0.5)], BOUNDS, EVERYBODY_BEATS)
    assert pick
    assert (pick.chosen.epoch, pick.feasible) == (3, True)


def test_one_that_leaves_the_style_out_is_not_chosen_though_it_keeps_to_every_bound():
    """Seen in the small world: epoch 4 at 0.6 kept 0 % of the style, cost nothing, and won by being early."""
    idle = candidate(4, 0.6, 0.0, half=0.006)
    assert (idle.feasible, idle.breaks) == (False, ("style",))
    assert is_hopeless(candidate(4, 0.6, -0.1, half=0.05), BOUNDS)
    assert not is_hopeless(idle, BOUNDS)
    pick = choose([idle, candidate(8, 1.0, 0.04, half=0.02)], BOUNDS, NOBODY_BEATS)
    assert pick
    assert (pick.chosen.epoch, pick.feasible, pick.tied) == (8, True, ())
    nobody = choose([idle, candidate(16, 1.2, 0.4, clip=-20.0)], BOUNDS, NOBODY_BEATS)
    assert nobody
    assert not nobody.feasible


def test_where_nobody_is_feasible_it_is_the_knee_and_said_so():
    found = [
        candidate(1, 1, 0.10, clip=-2.0),
        candidate(2, 1, 0.60, clip=-3.0),  # most of the style for little of the prompt
        candidate(3, 1, 0.70, clip=-8.0),
        candidate(4, 1, 0.50, clip=-6.0),  # beaten in both
    ]
    pick = choose(found, BOUNDS, NOBODY_BEATS)
    assert pick
    assert (pick.chosen.epoch, pick.feasible) == (2, False)
    assert [each.epoch for each in front(found)] == [1, 2, 3]
    assert "no candidate is within all bounds (fidelity)" in by_retention(
        pick, found, (found[1], found[0]), beaten=True
    )


def test_a_knee_does_not_copy_where_others_do_not():
    honest, copying = candidate(2, 1, 0.4, clip=-3.0), candidate(9, 1, 0.9, clip=-2.9, mem=0.2)
    assert knee([honest, copying], BOUNDS) is honest
    assert knee([copying], BOUNDS) is copying


def test_a_front_of_one_point_and_one_without_fidelity_have_a_knee():
    assert knee([candidate(2, 1, 0.4, clip=-3)], BOUNDS).epoch == 2
    assert knee([candidate(2, 1, 0.4, clip=None), candidate(3, 1, 0.5, clip=None)], BOUNDS).epoch == 3


def test_nothing_is_chosen_where_style_was_measured_of_nobody():
    assert choose([candidate(2, 1, None)], BOUNDS, NOBODY_BEATS) is None
    assert survivors([candidate(2, 1, None)], BOUNDS, 4, NOBODY_BEATS) == []


def test_only_what_more_images_cannot_save_is_hopeless():
    assert is_hopeless(candidate(1, 1, 0.5, clip=-3.0, clip_half=1.0), BOUNDS)
    assert not is_hopeless(candidate(1, 1, 0.5, clip=-3.0, clip_half=1.6), BOUNDS)
    assert is_hopeless(candidate(1, 1, 0.5, mem=0.05, mem_half=0.01), BOUNDS)
    assert not is_hopeless(candidate(1, 1, 0.5, clip=None, mem=None, div=None), BOUNDS)


def test_those_whose_upper_bound_does_not_reach_the_leader_drop_out():
    found = [candidate(1, 1, 0.10), candidate(2, 1, 0.58), candidate(3, 1, 0.60)]
    assert [each.epoch for each in survivors(found, BOUNDS, 4, EVERYBODY_BEATS)] == [3, 2]


def test_one_that_will_be_feasible_goes_on_beside_those_that_keep_more_of_the_style():
    greedy = [candidate(epoch, 1, 0.9, clip=-3.0, clip_half=2.0) for epoch in (5, 6, 7, 8)]
    modest = candidate(4, 0.6, 0.5, clip=-0.4, clip_half=2.0)
    kept = survivors([*greedy, modest], BOUNDS, 3, NOBODY_BEATS, shrink=0.5)
    assert modest in kept
    assert kept[0] is modest


def test_among_many_that_are_as_good_the_earliest_go_on_too():
    found = [candidate(epoch, 0.8, 0.6 + 0.001 * epoch) for epoch in range(1, 13)]
    kept = [each.epoch for each in survivors(found, BOUNDS, 4, NOBODY_BEATS)]
    assert {12, 1, 2} <= set(kept)
    assert len(kept) == 4


def test_successive_halving_seldom_loses_the_best():
    """Forty candidates whose ρ rises and falls with epoch × weight, fidelity falling; noise of the size that CLIP score and
    ρ have of one image. In nearly every draw the chosen one is as good as the best feasible one but for a tenth.
    """
    ways = [Way(epoch, weight) for epoch in range(2, 21, 2) for weight in (0.4, 0.6, 0.8, 1.0)]
    dose = np.array([each.epoch * each.weight for each in ways])
    rho, clip = 0.9 * (1 - np.exp(-dose / 4)), -0.08 * dose
    best = rho[clip > -0.9].max()
    good = 0
    for draw in range(60):
        random = np.random.default_rng(draw)
        shared = random.normal(0, 0.15, 32)
        ours = rho[:, None] + shared + random.normal(0, 0.1, (len(ways), 32))
        points = clip[:, None] + random.normal(0, 2.0, (len(ways), 32))
        alive = list(range(len(ways)))
        for number, (most, images) in enumerate(((10, 6), (4, 16), (4, 32))):
            found = {at: simulated(ways[at], ours[at, :images], points[at, :images]) for at in alive}
            index = {ways[at]: at for at in alive}

            def beats(one: Way, other: Way, images=images, index=index, ours=ours) -> bool:
                paired = ours[index[one], :images] - ours[index[other], :images]
                return paired.mean() - 2.1 * paired.std() / np.sqrt(images) > 0

            if number < 2:
                shrink = np.sqrt(images / (16, 32)[number])
                kept = survivors(list(found.values()), BOUNDS, most, beats, shrink=float(shrink))
                alive = [index[way(each)] for each in kept]
        pick = choose(list(found.values()), BOUNDS, beats)
        assert pick
        good += bool(rho[ways.index(way(pick.chosen))] > best - 0.1)
    assert good >= 57


def simulated(one: Way, ours: np.ndarray, points: np.ndarray) -> Candidate:
    half, clip_half = (2.2 * rows.std(ddof=1) / np.sqrt(len(rows)) for rows in (ours, points))
    found = candidate(
        one.epoch, one.weight, float(ours.mean()), half=half, clip=float(points.mean()), clip_half=clip_half
    )
    return found.model_copy(update={"fidelity": about(float(points.mean()), clip_half)})


def test_the_halves_share_no_prompt_and_have_both_kinds_of_every_pair():
    assert halves(6) == ((0, 2, 4), (1, 3, 5))
    assert halves(5) == ((0, 2, 4), (1, 3))
    assert halves(1) == ((0,), (0,))


def test_many_epochs_are_thinned_evenly_with_the_last_among_them():
    assert thinned(list(range(1, 21)), 10) == [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]
    assert thinned([3, 5, 9], 10) == [3, 5, 9]
    assert thinned(list(range(1, 8)), 3) == [2, 4, 7]


def test_the_neighbours_of_the_best_that_were_not_tried_come_in():
    files = {epoch: KeptFile(f"{epoch}", "") for epoch in range(1, 7)}
    lineup = Lineup(files, tuple(files), (0.5, 1.0), (), ())
    tried = lineup.first(3)
    assert tried == [Way(epoch, weight) for epoch in (2, 4, 6) for weight in (0.5, 1.0)]
    assert lineup.neighbours([Way(4, 1.0), Way(6, 1.0)], tried) == [Way(3, 1.0), Way(5, 1.0)]


def trained(epochs: int, losses: dict[int, float] | None = None, best: int | None = None) -> Trained:
    points = [ValidationPoint(epoch=epoch, step=epoch, loss=loss) for epoch, loss in (losses or {}).items()]
    kept = [Checkpoint(path=f"weights/x-{n:06d}", epoch=n, step=n, sha256=f"{n}") for n in range(1, epochs)]
    return Trained(
        engine="native", engine_version="1", command=(), weights="weights/x", weights_sha256="last",
        checkpoints=tuple(kept), steps=epochs, epochs=epochs, losses=(), seconds=1, device="cpu", modules=1, tensors=1,
        base_sha256="b", base_random=False, validation=tuple(points), best_epoch=best,
    )  # fmt: skip


def test_the_file_that_training_ended_with_stands_for_its_epoch():
    assert list(kept_files(trained(4))) == [1, 2, 3, 4]
    assert kept_files(trained(4))[4] == KeptFile("weights/x", "last")
    assert kept_files(trained(4, best=2))[2] == KeptFile("weights/x", "last")


def test_an_epoch_that_has_diverged_on_held_out_images_is_not_tried_and_named():
    settings = EvaluateSection(weights=(0.5,), weight=1.0)
    lineup = find_lineup(trained(4, {1: 0.12, 2: 0.10, 3: 0.105, 4: 0.12}), settings)
    assert lineup.epochs == (2, 3)
    assert lineup.notes == (
        "not tried: epochs 1, 4, since the loss on held-out images is more than 10% above the lowest",
    )
    assert find_lineup(trained(4), settings).epochs == (1, 2, 3, 4)
    assert far_worse([], 0.1) == set()


def test_the_lowest_loss_is_the_earliest_of_equals_among_the_epochs_kept():
    losses = [EpochLoss(epoch=n, held_out=loss) for n, loss in ((1, 0.1), (2, 0.2), (3, 0.15), (4, 0.15))]
    found = lowest_loss(losses, {2, 3, 4})
    assert found
    assert found.epoch == 3
    assert lowest_loss(losses, {9}) is None


def test_epochs_are_listed_as_people_would():
    assert listed([4]) == "epoch 4"
    assert listed([4, 6]) == "epochs 4, 6"
    assert listed([13, 14, 15]) == "epochs 13 to 15"


DEFAULT = full_plan(EvaluateSection(), 10, 4, thinned=True)


def test_the_default_plan_costs_some_six_hundred_images():
    assert [(each.ways, each.places) for each in DEFAULT.rounds()] == [(40, 6), (10, 16), (4, 32)]
    # 240 of the first round, 10 × 10 more, 4 × 6 of neighbours, 4 × 16 more, base 64, words 36, report 32; and where none of
    # the last round is feasible, four more of whom 6 were made
    assert DEFAULT.images == 240 + 100 + 24 + 64 + 64 + 36 + 32 + 4 * 26


def test_rounds_that_would_show_nothing_new_are_left_out():
    one_seed = replace(DEFAULT, seeds=(1,))
    assert [(each.ways, each.places) for each in one_seed.rounds()] == [(40, 6), (10, 16)]
    few = full_plan(EvaluateSection(prompts=("a", "b"), seeds=(1,)), 1, 3)
    assert [(each.ways, each.places) for each in few.rounds()] == [(3, 1)]
    assert few.images == 3 + 2 + 2 + 1


def test_without_an_encoder_only_what_is_shown_is_made():
    plan = full_plan(EvaluateSection(), 10, 4, measured=False)
    assert [(each.ways, each.places) for each in plan.rounds()] == [(40, 4)]
    assert plan.images == 164


@pytest.mark.parametrize("images", [660, 600, 500, 400, 300, 200, 140])
def test_a_cut_plan_keeps_to_its_images_and_is_the_largest_that_does(images: int):
    cut = within(DEFAULT, images)
    assert cut
    assert cut.images <= images
    larger = within(DEFAULT, images + 150)
    assert larger
    assert larger.images >= cut.images
    assert cut.checkpoints >= 3
    assert set(cut.shown) <= set(cut.chosen_on[: cut.screened])


def test_seeds_are_left_out_before_prompts_and_prompts_before_checkpoints():
    assert cut_note(DEFAULT, DEFAULT) == ""
    note = cut_note(DEFAULT, within(DEFAULT, DEFAULT.images - 1) or DEFAULT)
    assert note == "to keep to the budget: seeds 1 of 2"
    least = within(DEFAULT, 140)
    assert least
    assert "checkpoints" in cut_note(DEFAULT, least)
    assert within(DEFAULT, 20) is None


def test_a_budget_is_what_is_left_of_its_minutes_at_the_speed_measured():
    said: list[str] = []
    budget = Budget(10.0)
    assert budget.affordable() == float("inf")  # nothing is known of the speed yet
    budget.measure(images=10, seconds=10.0)
    assert budget.affordable() == pytest.approx(600 / 1.3, rel=0.01)
    assert budget.affordable(reserved=100) == pytest.approx(600 / 1.3 - 100, rel=0.01)
    cut, note = budget.fit(DEFAULT, lambda _, **fields: said.append(str(fields["text"])))
    assert cut
    assert cut.images < DEFAULT.images
    assert note.startswith("to keep to the budget: ")
    assert said == ["about 14.4 minutes at 0.77 images/s", note]
    tiny = Budget(0.5)
    tiny.measure(images=1, seconds=10.0)
    cut, note = tiny.fit(DEFAULT, lambda *_, **__: None)
    assert cut is None
    assert "even the coarsest choice takes more" in note


def test_no_budget_leaves_nothing_out():
    budget = Budget(None)
    budget.measure(images=1, seconds=1000.0)
    assert budget.fit(DEFAULT, lambda *_, **__: None) == (DEFAULT, "")
    assert isinstance(DEFAULT, Plan)


def seen_of(**cells: np.ndarray) -> Seen:
    """Unit vectors in a plane: references around angle 0, so that a cell's likeness falls with its angle."""
    references = unit(np.linspace(-0.1, 0.1, 8))
    return Seen(
        layout=Layout("x", "x"), prompts=np.arange(len(next(iter(cells.values())))),
        cells={name: unit(angles) for name, angles in cells.items()}, trained=references, held_out=references,
    )  # fmt: skip


def unit(angles: np.ndarray) -> np.ndarray:
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_a_paired_difference_is_sure_where_the_prompts_alone_differ():
    prompts = np.linspace(0, 0.6, 12)
    seen = seen_of(base=1.2 + 0 * prompts, early=0.3 + prompts, late=0.25 + prompts)
    assert (retention_difference(seen, "late", "early").low or 0) > 0
    assert retention_difference(seen, "early", "early").low == pytest.approx(0, abs=1e-9)


def test_an_encoder_that_sees_no_difference_to_the_base_tells_nothing():
    far = seen_of(base=np.full(10, 1.0))
    assert tells_from_base(far) == 1.0
    near = seen_of(base=np.linspace(-0.1, 0.1, 10))
    assert tells_from_base(near) < 0.7


def test_the_reason_says_what_is_kept_what_it_costs_and_what_others_do():
    chosen = candidate(12, 0.8, 0.71, half=0.06, clip=-0.4, clip_half=0.7)
    copying = [candidate(20, weight, 0.8, mem=0.2) for weight in (0.6, 0.8)]
    others = [chosen, candidate(14, 0.8, 0.72), *copying, candidate(18, 0.6, 0.7), candidate(18, 1.0, 0.8, mem=0.2)]
    pick = choose([chosen, others[1]], BOUNDS, NOBODY_BEATS)
    assert pick
    words = candidate(0, 0, 0.42, half=0.07)
    assert by_retention(pick, others, (chosen, words), beaten=True) == (
        "epoch 12 at 0.8: keeps 71% (65% to 77%) of the style on prompts that it was not chosen by, the base with style "
        "words 42% (35% to 49%); costs 0.4 CLIP points (-0.3 to 1.1); epoch 14 at 0.8 is no better beyond noise; "
        "epoch 20 copies training images at every weight tried"
    )
    assert "but does not beat the base with style words 42%" in by_retention(
        pick, others, (chosen, words), beaten=False
    )
