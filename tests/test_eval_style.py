"""Measures of style on vectors of known geometry, each against brute force or another's implementation."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.stats
from eval_case import PLACES, layout, scatter, seen, unit
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import roc_auc_score

from eval import mixes, trigger
from eval.layout import FLOOR
from eval.metric import NotMeasured
from eval.seen import Seen
from eval.style_classes import classify, confusion, measure_accuracy, measure_auc, pair_auc
from eval.style_similarity import (
    left_out_levels,
    measure_retention,
    measure_retention_over_words,
    measure_style_similarity,
    reference_level,
    similarities,
)


def test_style_similarity_is_the_mean_of_cosines_not_the_cosine_of_means():
    axes = np.eye(3, dtype=np.float32)
    grid = seen({"ink 0.8": axes[PLACES % 3]}, held_out=np.tile(axes, (2, 1)))
    assert measure_style_similarity(grid, "ink 0.8").value == pytest.approx(1 / 3, abs=0.05)
    pairs = [a @ b for a in grid.of("ink 0.8") for b in grid.held_out]
    assert measure_style_similarity(grid, "ink 0.8").value == pytest.approx(np.mean(pairs))


def test_references_are_held_out_images_where_there_are_four_and_the_note_says_so():
    grid = seen()
    assert measure_style_similarity(grid, "base").note == "12 references, held out, never trained on"
    few = dataclasses.replace(grid, held_out=grid.held_out[:3])
    assert measure_style_similarity(few, "base").note == "30 references, trained on"
    assert measure_style_similarity(few, "base").value != measure_style_similarity(grid, "base").value


def test_the_reference_level_leaves_each_out_of_its_own():
    rows = scatter(7, 0)
    pairs = [float(rows[i] @ rows[j]) for i in range(7) for j in range(7) if i != j]
    assert reference_level(rows) == pytest.approx(np.mean(pairs), abs=1e-6)
    left = [reference_level(np.delete(rows, index, axis=0)) for index in range(7)]
    np.testing.assert_allclose(left_out_levels(rows), left, atol=1e-6)
    assert measure_style_similarity(seen(), FLOOR).value == pytest.approx(reference_level(seen().held_out))
    with pytest.raises(NotMeasured, match="1 references"):
        reference_level(rows[:1])


def test_retention_is_nought_at_the_base_and_one_at_the_references_own_likeness():
    grid = seen()
    assert measure_retention(grid, "base").value == 0
    assert measure_retention(grid, "ink 1").value == pytest.approx(1, abs=0.1)
    rising = [measure_retention(grid, cell).value for cell in ("base + style words", "ink 0.5", "ink 0.8", "ink 1")]
    assert rising == sorted(rising)
    other = [measure_retention_over_words(grid, cell).value for cell in ("base + style words", "ink 0.8")]
    assert other[0] == 0
    assert 0 < other[1] < measure_retention(grid, "ink 0.8").value
    by_hand = [similarities(grid, cell).mean() for cell in ("ink 0.8", "base")]
    level = reference_level(grid.held_out)
    expected = (by_hand[0] - by_hand[1]) / (level - by_hand[1])
    assert measure_retention(grid, "ink 0.8").value == pytest.approx(expected)


def test_retention_has_no_meaning_where_the_base_is_as_alike_as_the_references():
    grid = seen({"base": scatter(len(PLACES), 5, toward=(2,), spread=0.01)})
    with pytest.raises(NotMeasured, match="base is as alike to the references"):
        measure_retention(grid, "ink 0.8")


def test_pair_auc_equals_scikit_learns():
    vectors, labels = np.concatenate([scatter(9, 1, toward=(1,)), scatter(7, 2, toward=(0, 1))]), [0] * 9 + [1] * 7
    cosines = vectors @ vectors.T
    same, scores = [], []
    for i in range(16):
        for j in range(i + 1, 16):
            same.append(labels[i] == labels[j])
            scores.append(cosines[i, j])
    assert pair_auc(cosines, np.array(labels)) == pytest.approx(roc_auc_score(same, scores))


def test_an_encoder_that_is_blind_to_style_has_an_auc_of_a_half_and_one_that_sees_it_of_one():
    assert measure_auc(seen(), "").value > 0.97
    blind = seen(trained=scatter(30, 1), held_out=scatter(12, 2), others={"wash": scatter(20, 3)})
    found = measure_auc(blind, "")
    assert found.value == pytest.approx(0.5, abs=0.1)
    assert found.interval.low is not None
    assert found.interval.low < 0.5 < (found.interval.high or 0)
    with pytest.raises(NotMeasured, match="no other style"):
        measure_auc(seen(others={}), "")


def test_styles_are_classified_and_the_confusion_matrix_has_a_row_a_cell():
    found = confusion(seen())
    for shares, intervals in zip(found.shares, found.intervals, strict=True):
        for share, interval in zip(shares, intervals, strict=True):
            assert interval.low is not None
            assert interval.high is not None
            assert interval.low <= share <= interval.high
    assert found.rows == ("base", "base + style words", "ink 0.8", "wash 1")
    assert found.columns == ("ink", "wash", "base")
    np.testing.assert_allclose(found.shares.sum(axis=1), 1)
    assert found.shares[2, 0] > 0.9
    assert found.shares[3, 1] > 0.9
    assert found.shares[0, 2] > 0.9
    accuracy = measure_accuracy(seen(), "ink 0.8")
    assert accuracy.value == found.shares[2, 0]
    assert "chance is 0.33" in accuracy.note


def test_no_image_of_the_base_is_judged_by_a_classifier_that_has_seen_its_prompt():
    """The base's images of prompt 0 are styled: a classifier that had seen them would call them base."""
    base = seen().of("base").copy()
    base[PLACES == 0] = scatter(2, 9, toward=(2,), spread=0.05)
    taken, classes = classify(seen({"base": base}), ["base"])
    assert {classes[index] for index in taken["base"][PLACES == 0]} == {"ink"}
    with pytest.raises(NotMeasured, match="one prompt"):
        classify(seen().at([0]), ["base"])


def test_the_classifier_is_scikit_learns_ridge_on_all_but_the_judged_prompts():
    grid = seen()
    own = np.concatenate([grid.trained, grid.held_out])
    for number in range(5):
        base = grid.of("base")[number != PLACES]
        rows = np.concatenate([own, grid.others["wash"], base])
        labels = ["ink"] * len(own) + ["wash"] * 20 + ["base"] * len(base)
        model = RidgeClassifier(class_weight="balanced").fit(rows, labels)
        taken, classes = classify(grid, ["ink 0.5"])
        expected = model.predict(grid.of("ink 0.5")[number == PLACES])
        assert [classes[index] for index in taken["ink 0.5"][number == PLACES]] == list(expected)


def test_what_the_trigger_does_is_measured_between_base_and_trigger():
    grid = seen()
    levels = {name: similarities(grid, name).mean() for name in grid.cells}
    base, main = levels["base"], levels["ink 0.8"]
    leakage = (levels["ink 0.8, no trigger"] - base) / (main - base)
    assert trigger.measure_leakage(grid, "").value == pytest.approx(leakage)
    wrong = (levels["ink 0.8, trigger of wash"] - base) / (main - base)
    assert trigger.measure_wrong_trigger(grid, "").value == pytest.approx(wrong)
    room = reference_level(grid.held_out) - base
    strength = (main - levels["ink 0.8, no trigger"]) / room
    assert trigger.measure_strength(grid, "").value == pytest.approx(strength)
    gated = seen({"ink 0.8, no trigger": grid.of("base")})
    assert trigger.measure_leakage(gated, "").value == pytest.approx(0)
    useless = seen({"ink 0.8, no trigger": grid.of("ink 0.8")})
    assert trigger.measure_leakage(useless, "").value == pytest.approx(1)
    with pytest.raises(NotMeasured, match="trigger_cells = false"):
        trigger.measure_leakage(seen(layout=layout(no_trigger=None)), "")


def test_a_mix_keeps_of_each_style_what_it_keeps_of_its_likeness():
    grid, mix = seen(), "ink 0.5 + wash 0.5"

    def kept(style: str, alone: str) -> float:
        at = {cell: similarities(grid, cell, style).mean() for cell in (mix, "base", alone)}
        return (at[mix] - at["base"]) / (at[alone] - at["base"])

    both = [kept("ink", "ink 1"), kept("wash", "wash 1")]
    assert [mixes.style_retention(grid, mix, style).value for style in ("ink", "wash")] == pytest.approx(both)
    assert mixes.measure_mix_retention(grid, mix).value == pytest.approx(min(both))
    assert mixes.measure_mix_balance(grid, mix).value == pytest.approx(min(both) / max(both))
    assert mixes.style_retention(grid, mix, "ink").interval is not None


def test_a_planted_conflict_is_seen_on_the_style_that_suffers_and_not_on_the_other():
    grid, mix = seen(), "ink 0.5 + wash 0.5"
    fair = unit(grid.of("ink 0.5").astype(float) + grid.of("wash 0.5").astype(float) * 0)
    unharmed = mixes.style_interference(seen({mix: fair}), mix, "ink")
    assert unharmed.value == pytest.approx(0, abs=1e-6)
    swallowed = seen({mix: grid.of("wash 0.5")})
    harmed = mixes.style_interference(swallowed, mix, "ink")
    assert harmed.value is not None
    assert harmed.value < -0.2
    assert harmed.interval is not None
    assert (harmed.interval.high or 0) < 0
    assert mixes.style_interference(swallowed, mix, "wash").value == pytest.approx(0, abs=1e-6)
    assert mixes.measure_mix_interference(swallowed, mix).value == pytest.approx(harmed.value)


def test_a_weight_that_was_not_sampled_alone_lies_on_the_line_between_its_neighbours():
    mix = "ink 0.9 + wash 0.25"
    grid = seen({mix: scatter(len(PLACES), 40, toward=(1, 1), spread=0.3)})
    grid = dataclasses.replace(grid, layout=layout(mixes={mix: {"ink": 0.9, "wash": 0.25}}))
    levels = {cell: similarities(grid, cell, "ink") for cell in ("ink 0.8", "ink 1", mix)}
    expected = levels[mix] - 0.5 * (levels["ink 0.8"] + levels["ink 1"])
    np.testing.assert_allclose(mixes.interference_rows(grid, mix, "ink"), expected)
    base, half = (similarities(grid, cell, "wash") for cell in ("base", "wash 0.5"))
    np.testing.assert_allclose(
        mixes.interference_rows(grid, mix, "wash"), similarities(grid, mix, "wash") - (base + half) / 2
    )
    strong = dataclasses.replace(grid, layout=layout(mixes={mix: {"ink": 1.5, "wash": 0.25}}))
    with pytest.raises(NotMeasured, match=r"alone at weight 1\.5"):
        mixes.interference_rows(strong, mix, "ink")


def test_more_weight_more_style_is_spearmans_correlation():
    assert mixes.measure_monotonicity(seen(), "").value == 1
    weights, rows = np.array([0.2, 0.4, 0.6, 0.8]), np.random.default_rng(0).normal(size=(20, 4))
    rows[0, 1] = rows[0, 2]
    expected = [scipy.stats.spearmanr(weights, row).statistic for row in rows]
    np.testing.assert_allclose(mixes.rank_correlation(weights, rows), expected)
    with pytest.raises(NotMeasured, match="1 weights of ink"):
        mixes.measure_monotonicity(seen(layout=layout(alone={"ink": {0.8: "ink 0.8"}})), "")


def test_half_of_the_prompts_can_be_looked_at_alone():
    grid = seen()
    half: Seen = grid.at([0, 2])
    assert set(half.prompts.tolist()) == {0, 2}
    kept = np.isin(PLACES, [0, 2])
    expected = similarities(grid, "ink 0.8")[kept].mean()
    assert measure_style_similarity(half, "ink 0.8").value == pytest.approx(expected)
    assert measure_style_similarity(half, "ink 0.8").n == kept.sum()
