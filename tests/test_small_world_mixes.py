"""Mixes in the small world, through the real stages: dusk darkens what snow lightens, hatched draws over either.

What is known beforehand has to come out: the planted conflict shows in the matrix and in the prediction, the harmless pair
keeps both styles. Both at full weights: at half of them hatched does not show at all.
"""

from __future__ import annotations

from typing import Any

import pytest

from brushset.paths import RunPaths
from brushset.records import BaseFile, EvalReport, MixChoice
from brushset.stage_records import load_record
from eval.mixing.explain import losing_style
from eval.mixing.project import interference
from small_world.embedder import small_extractors
from small_world.runs import make_runs
from small_world.styles import make_style

STYLES = ("dusk", "snow", "hatched")
RECIPE = {"epochs": 12, "unet_lr": 5e-3}
EVALUATE: dict[str, Any] = {
    "weight": 1.0, "weights": (1.0,), "pair_weights": (1.0, 1.0), "pair_sweep": (), "triple_partners": 0,
    "trigger_cells": False, "seeds": (1,), "steps": 8, "min_mix_fidelity": -100.0, "min_balance": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, small_base: BaseFile) -> dict[str, RunPaths]:
    """Three styles trained in one pass, of which dusk is evaluated with both others: these need no choice, and keep one file."""
    root = tmp_path_factory.mktemp("mixes")
    pictures = {name: make_style(name, 24, seed) for seed, name in enumerate(STYLES, start=1)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eval.look.load_extractors", small_extractors)
        found = make_runs(root, small_base, pictures, until="train", train=RECIPE, evaluate=EVALUATE)
        own = {"dusk": pictures["dusk"]}
        return found | make_runs(root, small_base, own, until="evaluate", train=RECIPE, evaluate=EVALUATE)


@pytest.fixture(scope="module")
def report(runs: dict[str, RunPaths]) -> EvalReport:
    record = load_record(runs["dusk"], "evaluate")
    assert record is not None
    return EvalReport.model_validate(record.data)


def choice_of(report: EvalReport, *styles: str) -> MixChoice:
    return next(choice for choice in report.mix_choices if choice.styles == styles)


def test_the_interference_matrix_shows_the_planted_conflict(report: EvalReport) -> None:
    """How much dusk keeps of itself: with snow less than half, with hatched all of it, and not by chance."""
    nothing = report.model_copy(update={"mix_choices": (), "matrices": ()})
    found = interference({"dusk": report, "snow": nothing, "hatched": nothing})
    of_dusk = dict(zip(found.columns, found.entries[0], strict=True))
    fighting, harmless = of_dusk["snow"], of_dusk["hatched"]
    assert found.meaningful
    assert fighting.value is not None
    assert harmless.value is not None
    assert fighting.value < 0.5 < harmless.value
    assert fighting.high is not None
    assert harmless.low is not None
    assert fighting.high < harmless.low
    assert found.entries[1][2].note.startswith("not measured")


def test_the_harmless_pair_is_mixed_plainly_and_keeps_both_styles(report: EvalReport) -> None:
    harmless, fighting = choice_of(report, "dusk", "hatched"), choice_of(report, "dusk", "snow")
    assert harmless.meaningful
    assert (harmless.chosen.method, harmless.chosen.mix) == ("weighted", {"dusk": 1.0, "hatched": 1.0})
    assert {each.method for each in harmless.candidates} == {"weighted", "switch", "composite"}
    assert harmless.chosen.least.value is not None
    assert fighting.chosen.least.value is not None
    assert harmless.chosen.least.value > 0.5 > fighting.chosen.least.value
    assert losing_style(fighting.chosen) in fighting.reason
    assert harmless.reported is not None


def test_the_conflict_was_predicted_by_what_both_do_to_the_noise_prediction(report: EvalReport) -> None:
    harmless, fighting = choice_of(report, "dusk", "hatched").predicted, choice_of(report, "dusk", "snow").predicted
    assert harmless is not None
    assert fighting is not None
    assert harmless.effect_cosine is not None
    assert fighting.effect_cosine is not None
    assert fighting.effect_cosine < 0 < harmless.effect_cosine
    assert min(fighting.kept.values()) < 1 < min(harmless.kept.values())
