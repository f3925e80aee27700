"""What each image measures, and how two runs differ: paired, and held against independent computations."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
from eval_case import PLACES, SEEDS, layout, seen
from scipy.stats import ttest_rel

from brushset.records import EvalReport, PlaceMeasure, PlaceValues, Score
from eval.cells import Place
from eval.clip_score import measure_clip_score
from eval.differences import Side, find_differences, shared_places
from eval.embedder import Identity
from eval.look import Missing, Pictures
from eval.memorisation import measure_gap
from eval.style_similarity import measure_style_similarity, reference_level
from eval.values import place_values

CELL = "ink 0.8"


def score(metric: str, value: float | None, *, meaningful: bool = True, higher: bool | None = True) -> Score:
    return Score(
        metric=metric, cell=CELL, value=value, n=10, higher_is_better=higher, extractor="e", meaningful=meaningful
    )


def report(*scores: Score) -> EvalReport:
    return EvalReport(cells=(), scores=scores, grid="", prompts=(), seeds=(), meaningful=True, notes=())


def values(
    cells: dict[str, dict[str, Sequence[float]]], names: Sequence[str], numbers: Sequence[int], **changes: object
) -> PlaceValues:
    measures = {
        name: PlaceMeasure(
            extractor="e", meaningful=True, level=0.7, cells={key: tuple(each) for key, each in rows.items()}
        )
        for name, rows in cells.items()
    }
    parts: dict[str, object] = {
        "prompts": tuple(names),
        "seeds": tuple(numbers),
        "references": "r",
        "measures": measures,
    }
    return PlaceValues.model_validate(parts | changes)


def grid(prompts: int, seeds: int = 2) -> tuple[list[str], list[int]]:
    return [f"p{i}" for i in range(prompts) for _ in range(seeds)], list(range(seeds)) * prompts


def made_up(prompts: int, shift: float, seed: int) -> dict[str, dict[str, list[float]]]:
    """Images of one prompt are alike, in every run."""
    random = np.random.default_rng(seed)
    level = np.repeat(np.random.default_rng(99).normal(0, 0.05, prompts), 2)

    def rows(centre: float) -> list[float]:
        return [float(each) for each in centre + level + random.normal(0, 0.01, 2 * prompts)]

    return {"style_similarity_csd": {"base": rows(0.3), CELL: rows(0.5 + shift)}}


def test_values_are_what_the_scores_are_means_of() -> None:
    looked = seen()
    files = {"layout": layout(), "size": (8, 8), "cells": {}, "trained": (), "held_out": (), "others": {}}
    pictures = Pictures(**files, prompts=PLACES, texts=[])  # type: ignore[arg-type]
    places = [Place(int(prompt), f"p{prompt}", number % SEEDS) for number, prompt in enumerate(PLACES)]
    real = Missing(Identity("e", "hash", meaningful=True))
    told = [score("clip_score", 1.0), score("style_similarity", 1.0), score("memorisation_gap", 1.0)]
    found = place_values(pictures, places, {"clip": looked, "dinov2": looked}, {"clip": real, "dinov2": real}, told)
    assert set(found.measures) == {"clip_score", "style_similarity", "memorisation_gap"}
    for name, measure in (
        ("clip_score", measure_clip_score), ("style_similarity", measure_style_similarity), ("memorisation_gap", measure_gap),
    ):  # fmt: skip
        for cell in ("base", CELL, "ink 0.5 + wash 0.5"):
            mean = np.mean(found.measures[name].cells[cell])
            mean = max(mean, 0.0) if name == "clip_score" else mean  # the score is clamped
            assert mean == pytest.approx(measure(looked, cell).value, abs=2e-6), (name, cell)
    assert found.measures["style_similarity"].level == pytest.approx(reference_level(looked.references()), abs=1e-6)
    assert found.measures["clip_score"].level is None
    assert found.prompts == tuple(place.prompt for place in places)
    assert PlaceValues.model_validate(json.loads(found.model_dump_json())) == found


def test_an_encoder_of_which_no_score_may_be_told_gives_no_values() -> None:
    looked, real = seen(), Missing(Identity("e", "", meaningful=True))
    files = {"layout": layout(), "size": (8, 8), "cells": {}, "trained": (), "held_out": (), "others": {}}
    pictures = Pictures(**files, prompts=PLACES, texts=[])  # type: ignore[arg-type]
    told = [score("clip_score", 1.0, meaningful=False), score("style_similarity", None)]
    places = [Place(int(prompt), "p", number) for number, prompt in enumerate(PLACES)]
    found = place_values(pictures, places, {"clip": looked}, {"clip": real}, told)
    assert set(found.measures) == {"clip_score"}
    assert not found.measures["clip_score"].meaningful


def test_of_few_prompts_the_interval_is_the_paired_t_interval_over_prompts() -> None:
    one, other = made_up(5, 0.0, 1), made_up(5, 0.05, 2)
    first = Side(report(score("style_similarity_csd", 0.5)), CELL, values(one, *grid(5)))
    second = Side(report(score("style_similarity_csd", 0.55)), CELL, values(other, *grid(5)))
    found = find_differences(first, second)[-1]
    assert found.metric == "style_similarity_csd"
    by_prompt = [np.reshape(each["style_similarity_csd"][CELL], (5, 2)).mean(axis=1) for each in (one, other)]
    expected = ttest_rel(by_prompt[1], by_prompt[0]).confidence_interval(0.95)
    assert found.difference.value == pytest.approx(by_prompt[1].mean() - by_prompt[0].mean())
    assert (found.difference.low, found.difference.high) == pytest.approx((expected.low, expected.high))
    assert found.prompts == 5


def test_the_interval_of_the_difference_in_retention_is_that_of_an_independent_bootstrap() -> None:
    one, other = made_up(30, 0.0, 1), made_up(30, 0.03, 2)
    first = Side(report(score("retention_csd", 0.5)), CELL, values(one, *grid(30)))
    second = Side(report(score("retention_csd", 0.6)), CELL, values(other, *grid(30)))
    found = find_differences(first, second)[0]
    assert found.metric == "retention_csd"

    def rho(rows: dict[str, list[float]], prompts: np.ndarray) -> float:
        base, own = (np.reshape(rows[cell], (30, 2))[prompts].mean() for cell in ("base", CELL))
        return float((own - base) / (0.7 - base))

    random, draws = np.random.default_rng(5), []
    for _ in range(4000):
        drawn = random.integers(0, 30, 30)
        draws.append(rho(other["style_similarity_csd"], drawn) - rho(one["style_similarity_csd"], drawn))
    whole = np.arange(30)
    value = rho(other["style_similarity_csd"], whole) - rho(one["style_similarity_csd"], whole)
    low, high = np.quantile(draws, [0.025, 0.975])
    assert found.difference.value == pytest.approx(value)
    width = high - low
    # Ours is widened for few prompts: by √(30/29) and Student's t, 6 % at 30.
    assert found.difference.low == pytest.approx(low - 0.03 * width, abs=0.05 * width)
    assert found.difference.high == pytest.approx(high + 0.03 * width, abs=0.05 * width)


def test_pairing_makes_the_interval_narrower_than_those_of_the_runs() -> None:
    one, other = made_up(30, 0.0, 1), made_up(30, 0.03, 2)
    sides = [Side(report(score("style_similarity_csd", 0.5)), CELL, values(rows, *grid(30))) for rows in (one, other)]
    found = find_differences(*sides)[-1].difference
    alone = np.reshape(one["style_similarity_csd"][CELL], (30, 2)).mean(axis=1)
    assert found.low is not None
    assert found.high is not None
    assert (found.high - found.low) < 0.5 * 2 * 1.96 * alone.std() / np.sqrt(30)


def test_places_that_one_run_lacks_are_left_out_and_named() -> None:
    one, other = made_up(6, 0.0, 1), made_up(6, 0.05, 2)
    renamed = [name.replace("p5", "other") for name in grid(6)[0]]
    first, second = values(one, *grid(6)), values(other, renamed, grid(6)[1])
    assert shared_places(first, second) == [(number, number) for number in range(10)]
    sides = [Side(report(score("style_similarity_csd", 0.5)), CELL, each) for each in (first, second)]
    found = find_differences(*sides)[-1]
    assert found.prompts == 5
    assert "over the 10 places alone" in found.difference.note
    more = Side(sides[0].report, CELL, values(made_up(8, 0.05, 2), *grid(8)))
    assert "over the 12 places alone" in find_differences(sides[0], more)[-1].difference.note
    assert "alone" not in find_differences(sides[0], sides[0])[-1].difference.note


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"references": "others"}, "held against different references"),
        ({"prompts": tuple(f"q{n}" for n in range(10))}, "no prompts with a seed that both runs have"),
        (None, "values.json is missing"),
    ],
)
def test_where_nothing_pairs_both_numbers_stand_and_no_interval(change: dict[str, object] | None, reason: str) -> None:
    first = values(made_up(5, 0, 1), *grid(5))
    second = values(made_up(5, 0, 2), *grid(5), **change) if change is not None else None
    sides = (
        Side(report(score("style_similarity_csd", 0.5)), CELL, first),
        Side(report(score("style_similarity_csd", 0.625)), CELL, second),
    )
    found = find_differences(*sides)[-1]
    assert (found.first.value, found.second.value, found.difference.value) == (0.5, 0.625, 0.125)
    assert (found.difference.low, found.prompts) == (None, 0)
    assert reason in found.difference.note


def test_another_extractor_or_another_cell_does_not_pair() -> None:
    rows = made_up(5, 0, 1)
    first = Side(report(score("style_similarity_csd", 0.5)), CELL, values(rows, *grid(5)))
    measure = PlaceMeasure(
        extractor="another", meaningful=True, level=0.7,
        cells={key: tuple(each) for key, each in rows["style_similarity_csd"].items()},
    )  # fmt: skip
    other = values({}, *grid(5), measures={"style_similarity_csd": measure})
    found = find_differences(first, Side(first.report, CELL, other))[-1]
    assert "different extractors: e, another" in found.difference.note
    strange = find_differences(first, Side(report(score("style_similarity_csd", 0.5)), "ink 1", first.values))[-1]
    assert "no numbers of ink 1" in strange.difference.note


def test_a_metric_of_sets_has_a_difference_and_no_interval_and_unmeasured_ones_say_so() -> None:
    first = Side(report(score("fid", 150.0, higher=False), score("kid", None)), CELL, None)
    second = Side(report(score("fid", 140.0, higher=False, meaningful=False), score("kid", 0.5)), CELL, None)
    found = {each.metric: each for each in find_differences(first, second)}
    assert found["fid"].difference.value == -10
    assert found["fid"].difference.low is None
    assert not found["fid"].meaningful
    assert found["kid"].difference.value is None
    assert "not measured in one of the runs" in found["kid"].difference.note
    assert set(found) == {"fid", "kid"}


def test_where_the_base_is_as_alike_as_the_references_there_is_no_retention() -> None:
    rows = {"style_similarity_csd": {"base": [0.8] * 10, CELL: [0.9] * 10}}
    side = Side(report(score("retention_csd", 0.5)), CELL, values(rows, *grid(5)))
    found = find_differences(side, side)[0]
    assert found.difference.value is None
    assert "as near to the references" in found.difference.note
