"""Distances, memorisation and diversity against independent implementations: torchmetrics, SciPy, brute force."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from eval_case import PLACES, scatter, seen, unit
from test_eval_stage import trained as trained_record
from torchmetrics.image.kid import poly_mmd

from brushset.records import ValidationPoint
from eval.clip_score import measure_clip_difference, measure_clip_score
from eval.diversity import measure_lpips_ratio, measure_vendi_ratio, vendi_score
from eval.fid import frechet_by_gram, frechet_distance, measure_fid
from eval.kernel_distance import (
    cubic,
    cubic_of_units,
    gaussian,
    measure_cmmd,
    measure_kd,
    measure_kd_difference,
    measure_kid,
    unbiased_mmd,
)
from eval.layout import FLOOR
from eval.loss_gap import loss_gap_score
from eval.memorisation import (
    bits_apart,
    copy_threshold,
    expected_largest,
    measure_copies,
    measure_gap,
    measure_near_copies,
    nearest_trained,
)
from eval.metric import NotMeasured


def frechet_by_scipy(real: np.ndarray, generated: np.ndarray) -> float:
    root = scipy.linalg.sqrtm(np.cov(real, rowvar=False) @ np.cov(generated, rowvar=False))
    shift = real.mean(0) - generated.mean(0)
    return float(shift @ shift + np.trace(np.cov(real, rowvar=False) + np.cov(generated, rowvar=False) - 2 * root.real))


def test_frechet_distance_equals_scipys_matrix_root_both_ways():
    random = np.random.default_rng(0)
    real, generated = random.normal(size=(90, 12)), random.normal(0.3, 1.7, size=(70, 12))
    expected = frechet_by_scipy(real, generated)
    assert frechet_distance(real, generated) == pytest.approx(expected, rel=1e-9)
    assert frechet_by_gram(real, generated) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_fewer_images_than_features_is_that_of_the_space_they_span():
    random = np.random.default_rng(2)
    low_real, low_generated = random.normal(size=(30, 5)), random.normal(0.5, 2, size=(20, 5))
    turn = np.linalg.qr(random.normal(size=(64, 64)))[0][:5]
    expected = frechet_by_scipy(low_real, low_generated)
    assert frechet_distance(low_real @ turn, low_generated @ turn) == pytest.approx(expected, rel=1e-6)
    assert frechet_by_gram(low_real @ turn, low_generated @ turn) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_of_two_known_gaussians_is_the_formula():
    real = np.random.default_rng(1).normal(size=(200_000, 2))
    # ‖μ‖² = 9, and (2 - 1)² for each of two axes of unit variance.
    assert frechet_distance(real, real * 2 + [3.0, 0.0]) == pytest.approx(9 + 2, abs=0.05)


def test_fid_of_a_set_with_itself_is_zero_and_its_floor_has_as_many_images_as_a_cell():
    grid = seen({"base": seen().trained[:10]}, trained=seen().trained[:10])
    assert measure_fid(grid, "base").value == pytest.approx(0, abs=1e-6)
    found = measure_fid(seen(), "ink 0.8")
    assert found.note.startswith("30 references, trained on; biased upwards")
    assert found.interval.method == "jackknife over 5 prompts"
    floor = measure_fid(seen(), FLOOR)
    assert floor.n == len(PLACES)
    assert floor.value == pytest.approx(frechet_distance(seen().trained[1::2], seen().trained[0::2][:10]))
    with pytest.raises(NotMeasured, match="10 images against 1 references"):
        measure_fid(seen(trained=seen().trained[:1]), "base")


def test_kid_equals_torchmetrics_polynomial_mmd_on_all_images():
    random = np.random.default_rng(3)
    x, y = random.normal(size=(24, 9)), random.normal(0.2, size=(24, 9))
    expected = float(poly_mmd(torch.from_numpy(x), torch.from_numpy(y)))
    assert unbiased_mmd(x, y, cubic, np.arange(24)).value == pytest.approx(expected)


def test_an_unbiased_distance_of_unequal_sets_is_the_double_sum_and_its_jackknife_leaves_out():
    random = np.random.default_rng(4)
    x, y, clusters = random.normal(size=(12, 5)), random.normal(size=(9, 5)), np.repeat([3, 1, 7, 2], 3)
    kernel = lambda a, b: (a @ b / 5 + 1) ** 3  # noqa: E731
    own = np.mean([kernel(x[i], x[j]) for i in range(12) for j in range(12) if i != j])
    other = np.mean([kernel(y[i], y[j]) for i in range(9) for j in range(9) if i != j])
    cross = np.mean([kernel(a, b) for a in x for b in y])
    found = unbiased_mmd(x, y, cubic, clusters)
    assert found.value == pytest.approx(own + other - 2 * cross)
    without = [unbiased_mmd(x[clusters != c], y, cubic, clusters[clusters != c]).value for c in (1, 2, 3, 7)]
    np.testing.assert_allclose(found.without_cluster, without)
    rows = [unbiased_mmd(x, np.delete(y, row, axis=0), cubic, clusters).value for row in range(9)]
    np.testing.assert_allclose(found.without_row, rows)


def test_kd_of_unit_vectors_is_kid_of_vectors_of_length_root_d():
    x, y = scatter(10, 1), scatter(14, 2)
    np.testing.assert_allclose(cubic_of_units(x, y), cubic(x * 12**0.5, y * 12**0.5), rtol=1e-5)
    value = measure_kd(seen(), "ink 0.8").value
    assert value == pytest.approx(unbiased_mmd(seen().of("ink 0.8"), seen().trained, cubic_of_units, PLACES).value)
    assert measure_kid(seen(), "ink 0.8").value != pytest.approx(value)


def test_cmmd_is_ten_times_the_shift_of_the_mean_and_unbiased():
    grid = seen()
    x, y = grid.of("base").astype(float), grid.trained.astype(float)
    biased = gaussian(x, x).mean() + gaussian(y, y).mean() - 2 * gaussian(x, y).mean()
    assert biased == pytest.approx(10 * ((x.mean(0) - y.mean(0)) ** 2).sum(), rel=0.01)
    assert measure_cmmd(grid, "base").value < biased
    nothing = [unbiased_mmd(scatter(40, i), scatter(60, i + 500), gaussian, np.arange(40)).value for i in range(60)]
    assert abs(np.mean(nothing)) < 3 * scipy.stats.sem(nothing)


def test_distances_fall_toward_the_style_and_the_difference_to_style_words_pairs():
    grid = seen()
    falling = [measure_kd(grid, cell).value for cell in ("base", "base + style words", "ink 0.8", "ink 1")]
    assert falling == sorted(falling, reverse=True)
    found = measure_kd_difference(grid, "ink 0.8")
    assert found.value == pytest.approx(falling[2] - falling[1])
    assert (found.interval.high or 0) < 0
    floor = measure_kd(grid, FLOOR)
    assert floor.interval.low is not None
    assert floor.interval.low < 0 < (floor.interval.high or 0)


def test_held_out_references_are_used_from_sixteen_on():
    enough = seen(held_out=scatter(16, 8, toward=(2,)))
    assert "16 references, held out" in measure_kd(enough, "base").note
    assert "30 references, trained on" in measure_kd(seen(), "base").note


def test_the_expected_largest_of_a_draw_is_what_draws_give():
    random = np.random.default_rng(6)
    values = random.normal(size=(3, 20))
    draws = np.mean([values[:, random.choice(20, 6, replace=False)].max(axis=1) for _ in range(20_000)], axis=0)
    np.testing.assert_allclose(expected_largest(values, 6), draws, atol=0.01)
    np.testing.assert_allclose(expected_largest(values, 20), values.max(axis=1))
    np.testing.assert_allclose(expected_largest(values, 1), values.mean(axis=1))


def test_copies_of_training_images_have_a_gap_above_nothing_and_new_ones_none():
    grid = seen()
    copies = unit(grid.trained[: len(PLACES)] + 0.01 * np.random.default_rng(0).normal(size=(len(PLACES), 12)))
    remembered = measure_gap(seen({"ink 0.8": copies}), "ink 0.8")
    assert remembered.interval.low is not None
    assert remembered.interval.low > 0
    assert remembered.note == "30 trained and 12 held-out images, both drawn down to 12"
    fresh = measure_gap(seen({"ink 0.8": scatter(len(PLACES), 77, toward=(2,), spread=0.3)}), "ink 0.8")
    assert fresh.interval.low is not None
    assert fresh.interval.low < 0 < (fresh.interval.high or 0)
    with pytest.raises(NotMeasured, match=r"3 held-out images, 4 are wanted.*\[dataset\] holdout"):
        measure_gap(seen(held_out=grid.held_out[:3]), "ink 0.8")


def test_copies_are_counted_and_shown_and_fresh_images_of_the_style_are_none():
    grid = seen()
    among = grid.trained @ grid.trained.T
    np.fill_diagonal(among, -1)
    usual = np.percentile(among.max(axis=1), 99)
    assert copy_threshold(grid) == pytest.approx(usual, abs=1e-6)
    doubled = np.concatenate([grid.trained, grid.trained])
    twins = np.kron(np.ones((2, 2)), np.eye(30)).astype(bool)
    assert copy_threshold(dataclasses.replace(grid, trained=doubled)) == pytest.approx(1, abs=1e-6)
    assert copy_threshold(dataclasses.replace(grid, trained=doubled, twins=twins)) == pytest.approx(usual, abs=1e-6)
    half = grid.of("ink 0.8").copy()
    half[:5] = grid.trained[[3, 1, 4, 1, 5]]
    copied = seen({"ink 0.8": half})
    assert measure_copies(copied, "ink 0.8").value == 0.5
    assert measure_copies(grid, "ink 0.8").value == 0
    pairs = nearest_trained(copied, "ink 0.8", 3)
    assert {(pair.place, pair.trained) for pair in pairs} <= {(0, 3), (1, 1), (2, 4), (3, 1), (4, 5)}
    assert [pair.cosine for pair in pairs] == sorted((pair.cosine for pair in pairs), reverse=True)


def test_hashes_six_bits_apart_are_near_copies_and_seven_are_not():
    hashes = np.random.default_rng(1).integers(0, 2, (30, 64)).astype(np.float32)
    generated = hashes[: len(PLACES)].copy()
    generated[:4, :6] = 1 - generated[:4, :6]
    generated[4:, :7] = 1 - generated[4:, :7]
    assert bits_apart(generated, hashes)[0, 0] == 6
    assert measure_near_copies(seen({"base": generated}, trained=hashes), "base").value == 0.4


def test_the_vendi_score_counts_different_images():
    assert vendi_score(np.eye(5)) == pytest.approx(5)
    assert vendi_score(np.tile(np.eye(5)[:1], (4, 1))) == pytest.approx(1)
    rows = scatter(9, 3, toward=(1,))
    weights = np.linalg.eigvalsh((rows @ rows.T).astype(float) / 9)
    expected = np.exp(scipy.stats.entropy(np.clip(weights, 0, None)))
    assert vendi_score(rows) == pytest.approx(expected, rel=1e-4)


def test_an_adapter_that_makes_one_image_of_every_prompt_is_less_diverse_than_the_base():
    same = np.repeat(scatter(1, 5), len(PLACES), axis=0)
    found = measure_vendi_ratio(seen({"ink 0.8": same}), "ink 0.8")
    assert found.value == pytest.approx(1 / vendi_score(seen().of("base")), rel=1e-5)
    assert measure_vendi_ratio(seen(), "base").value == 1
    columns = {"base": np.full((10, 1), 0.5), "ink 0.8": np.arange(10)[:, None] / 20}
    ratio = measure_lpips_ratio(seen(columns), "ink 0.8")
    assert ratio.value == pytest.approx(np.mean(columns["ink 0.8"]) / 0.5)
    alone = {"base": np.full((10, 1), np.nan), "ink 0.8": np.full((10, 1), np.nan)}
    with pytest.raises(NotMeasured, match="one seed a prompt"):
        measure_lpips_ratio(seen(alone), "ink 0.8")


def test_clip_scores_are_a_hundred_cosines_and_their_difference_pairs():
    grid = seen()
    assert grid.texts is not None
    cosines = {cell: 100 * (grid.of(cell) * grid.texts).sum(axis=1) for cell in ("base", "ink 0.8")}
    found = measure_clip_difference(grid, "ink 0.8")
    assert found.value == pytest.approx((cosines["ink 0.8"] - cosines["base"]).mean(), abs=1e-4)
    apart = dataclasses.replace(grid, texts=-grid.of("ink 0.8"))
    assert measure_clip_score(apart, "ink 0.8").value == 0
    assert measure_clip_score(dataclasses.replace(grid, texts=grid.of("base")), "base").value == pytest.approx(100)
    with pytest.raises(NotMeasured, match="reads no text"):
        measure_clip_score(dataclasses.replace(grid, texts=None), "base")


def test_the_loss_gap_is_that_of_the_epoch_whose_weights_these_are():
    points = tuple(ValidationPoint(epoch=e, step=e, loss=0.2 + 0.1 * e, train_loss=0.2) for e in (1, 2, 3))
    record = trained_record("own", "base")
    last = loss_gap_score(record.model_copy(update={"validation": points}), 5)
    assert (last.value, last.n, last.meaningful) == (pytest.approx(0.3), 5, True)
    best = loss_gap_score(record.model_copy(update={"validation": points, "best_epoch": 2}), 5)
    assert best.value == pytest.approx(0.2)
    none = loss_gap_score(record, 5)
    assert (none.value, none.meaningful) == (None, False)
    assert none.note.startswith("not measured: [train] validate_every_n_epochs = 0")
