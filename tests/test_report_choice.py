"""The report of a run that was evaluated in full: what is chosen, why, and the evidence."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report_case as case
from report_case import Structure
from test_report import make_report, make_spec, make_trained

from brushset.page.choice import choice_part, headline_numbers
from brushset.page.metrics import FLOOR, RUN, family_of, goals, title_of
from brushset.page.mixes import matrix_tables
from brushset.page.pictures import extremes, main_cell, trigger_strip
from brushset.page.scores import missing_lines, yardsticks
from brushset.page.verdict import judge
from brushset.records import Choice, Estimate, Score
from brushset.spec import EvaluateSection
from eval.layout import FLOOR as MEASURED_FLOOR
from eval.layout import RUN as MEASURED_RUN
from eval.table import METRICS

SPEC = make_spec(evaluate=EvaluateSection(prompts=case.PROMPTS, seeds=case.SEEDS, width=64, height=64))


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The run folder's parent and the page of a run with everything."""
    root, evaluation = tmp_path_factory.mktemp("rich"), case.make_rich_evaluation()
    _, page = make_report(
        root, spec=SPEC, evaluation=evaluation, choice=case.make_choice(), values=case.make_values(evaluation)
    )
    return root, page


def undrawn(choice: Choice) -> Choice:
    """With nothing measured of its candidates, so that there is nothing to plot."""
    nothing = Estimate(value=None, note="no real encoder")
    empty = dict.fromkeys(("retention", "fidelity", "diversity", "memorisation"), nothing)
    candidates = tuple(each.model_copy(update=empty) for each in choice.candidates)
    return choice.model_copy(update={"candidates": candidates, "losses": ()})


def section_ids(page: str) -> set[str]:
    return set(re.findall(r'<section id="(\w+)"', page))


def test_a_full_report_is_one_well_formed_page_that_loads_nothing(rich: tuple[Path, str]) -> None:
    found = Structure(rich[1])
    assert found.outside == ["audit/index.html"]
    assert found.tags.count("svg") >= 7
    assert len(found.images) > 72, "the grid of epochs × weights × prompts, and the others"
    assert all(image.get("alt") for image in found.images)
    assert not {"script", "link", "iframe", "object", "embed"} & set(found.tags)
    assert not re.findall(r"url\((?!#)", rich[1])


def test_a_full_report_has_every_section_and_its_contents_lead_to_them(rich: tuple[Path, str]) -> None:
    _, page = rich
    sections = section_ids(page)
    assert sections == {
        "choice", "grid", "scores", "samples", "memorisation", "trigger", "mixes", "data", "training", "files", "times",
        "again",
    }  # fmt: skip
    assert set(re.findall(r'<a href="#(\w+)"', page)) == sections


def test_prompts_are_escaped_everywhere_also_in_plots(rich: tuple[Path, str]) -> None:
    _, page = rich
    assert "<b>on</b>" not in page
    assert page.count("&lt;b&gt;on&lt;/b&gt;") > 10
    assert "references are <held out>" not in page


def test_ids_in_the_page_are_unique_but_for_equal_drawings(rich: tuple[Path, str]) -> None:
    _, page = rich
    definitions: dict[str, str] = {}
    for name, rest in re.findall(r'<(?:clipPath|pattern|path|section)[^>]*? id="([^"]+)"(.*?)>', page):
        assert definitions.setdefault(name, rest) == rest, f"{name} is drawn in two ways"


def test_the_verdict_says_what_to_use_why_and_three_numbers(rich: tuple[Path, str]) -> None:
    _, page = rich
    top = page[: page.index("<section")]
    assert "Use epoch 8 at 0.8" in top
    assert "so the earlier one is taken" in top
    assert "ρ 0.21 (0.13 to 0.29)" in top
    for number in ("0.76", "0.69 to 0.83", "−0.79", "0.008"):
        assert number in top, number


def test_a_page_of_small_pictures_stays_small(rich: tuple[Path, str]) -> None:
    assert len(rich[1]) < 600_000


@pytest.mark.parametrize(
    ("without", "gone"),
    [
        ("choice", {"choice"}),
        ("values", {"samples"}),
        ("mixes", set()),
        ("nearest", {"memorisation"}),
        ("triggers", {"trigger"}),
        ("everything", {"choice", "samples", "memorisation", "trigger", "mixes"}),
    ],
)
def test_what_a_run_lacks_leaves_no_empty_section(tmp_path: Path, without: str, gone: set[str]) -> None:
    evaluation = case.make_rich_evaluation(mixes=without not in {"mixes", "everything"})
    drop: dict[str, Any] = {}
    if without in {"nearest", "everything"}:
        drop["nearest"] = ()
    if without in {"triggers", "everything"}:
        drop["more_cells"] = ()
    if without == "everything":
        drop["matrices"] = ()
    evaluation = evaluation.model_copy(update=drop)
    choice = None if without in {"choice", "everything"} else undrawn(case.make_choice())
    values = None if without in {"values", "everything"} else case.make_values(case.make_rich_evaluation())
    _, page = make_report(tmp_path, spec=SPEC, evaluation=evaluation, choice=choice, values=values)
    everything = {"choice", "samples", "memorisation", "trigger", "mixes"}
    assert everything - section_ids(page) == gone
    assert set(re.findall(r'<a href="#(\w+)"', page)) == section_ids(page)
    if without == "mixes":
        assert "mixing board" not in page
        assert "Taken for which style" in page
    Structure(page)


def test_where_nothing_keeps_the_bounds_the_verdict_says_so() -> None:
    verdict = judge(SPEC, make_trained(), case.make_rich_evaluation(), case.make_choice(feasible=False))
    assert verdict.tone == "worse"
    assert verdict.headline == "No checkpoint keeps all bounds; the best compromise is epoch 8 at 0.8"


def test_an_adapter_that_may_do_no_more_than_words_is_not_called_better() -> None:
    choice = case.make_choice()
    assert choice.words is not None
    words = choice.words.model_copy(update={"retention": case.estimate(0.72, 0.05)})
    verdict = judge(SPEC, make_trained(), case.make_rich_evaluation(), choice.model_copy(update={"words": words}))
    assert (verdict.tone, verdict.headline) == (
        "unsure",
        "Use epoch 8 at 0.8, though it may do no more than style words",
    )


def test_a_choice_by_held_out_loss_makes_no_claim_on_style() -> None:
    choice = case.make_choice().model_copy(update={"decided_by": "held-out loss", "reason": "the loss is lowest there"})
    verdict = judge(SPEC, make_trained(), case.make_rich_evaluation(), choice)
    assert (verdict.tone, verdict.text) == ("unscored", "The loss is lowest there.")


@pytest.mark.parametrize("what", ["smoke", "random"])
def test_made_up_parts_outweigh_any_choice(tmp_path: Path, what: str) -> None:
    spec = SPEC.model_copy(update={"smoke": what == "smoke"})
    choice = undrawn(case.make_choice(meaningful=False))
    evaluation = case.make_rich_evaluation(meaningful=False)
    trained = make_trained(base_random=what == "random")
    report, page = make_report(tmp_path, spec=spec, trained=trained, evaluation=evaluation, choice=choice)
    assert report.verdict == "This run proves only that the machinery works"
    assert 'class="numbers"' not in page, "no three numbers on top"
    assert page.count('<span class="flag">meaningless</span>') > 20
    written = json.loads(next(tmp_path.rglob("report.json")).read_text())
    assert written["meaningful"] is False


def test_the_json_holds_verdict_choice_and_scores(rich: tuple[Path, str]) -> None:
    root, _ = rich
    written = json.loads(next(root.rglob("report.json")).read_text())
    assert written["verdict"]["headline"] == "Use epoch 8 at 0.8"
    assert written["use"] == {
        "weights": "weights/cartoon-000008.safetensors", "weights_sha256": "12" * 32, "epoch": 8, "weight": 0.8,
        "trigger": "cartoonstyle",
    }  # fmt: skip
    first = written["numbers"][0]
    assert (first["value"], first["low"], first["high"]) == (0.76, 0.69, 0.83)
    assert Choice.model_validate(written["choice"]) == case.make_choice()
    assert [Score.model_validate(score) for score in written["scores"]] == list(case.make_rich_evaluation().scores)
    assert written["mixes"][0]["chosen"]["mix"] == {"cartoon": 0.5, "anime": 0.5}


def test_numbers_come_from_prompts_that_it_was_not_chosen_by_else_from_scores() -> None:
    evaluation, choice = case.make_rich_evaluation(), case.make_choice()
    main = main_cell(evaluation, "cartoon", 0.8)
    assert [round(each.estimate.value or 0, 3) for each in headline_numbers(choice, evaluation, main)] == [
        0.76, -0.788, 0.008,
    ]  # fmt: skip
    unreported = choice.model_copy(update={"reported": None})
    assert headline_numbers(unreported, evaluation, main)[0].estimate.value == pytest.approx(
        case.retention_at(8, 0.8), abs=1e-4
    )
    assert [each.estimate.value for each in headline_numbers(None, evaluation, main)] == [0.76, -0.72, 0.009]
    nothing = headline_numbers(None, evaluation.model_copy(update={"scores": ()}), main)
    assert [each.estimate.note for each in nothing] == ["not measured in this run"] * 3


def test_the_plane_frames_the_chosen_cell_and_hatches_what_breaks_a_bound(tmp_path: Path) -> None:
    part = choice_part(case.make_choice(), tmp_path)
    assert part is not None
    assert "var(--orange)" in part.plane, "the frame"
    assert "<pattern" in part.plane, "the hatch"
    broken = [each for each in case.make_choice().candidates if each.breaks]
    letters = re.findall(r">([FDM]{1,3})</text>", str(part.plane))
    assert len(letters) == len(broken) > 2
    kept = [each.model_copy(update={"feasible": True, "breaks": ()}) for each in case.make_choice().candidates]
    whole = choice_part(case.make_choice().model_copy(update={"candidates": tuple(kept)}), tmp_path)
    assert whole is not None
    assert "<pattern" not in whole.plane


def test_a_choice_without_measurements_draws_no_plots(tmp_path: Path) -> None:
    bare = undrawn(case.make_choice())
    candidates = tuple(each.model_copy(update={"samples": ()}) for each in bare.candidates)
    bare = bare.model_copy(update={"candidates": candidates})
    part = choice_part(bare, tmp_path)
    assert part is not None
    assert (part.plane, part.scatter, part.curves, part.grids) == ("", "", (), ())
    assert choice_part(bare.model_copy(update={"candidates": ()}), tmp_path) is None


def test_style_words_of_which_only_the_prompt_was_measured_are_left_out_of_the_scatter(tmp_path: Path) -> None:
    """As where the words alone are as alike to the references as these to one another."""
    choice = case.make_choice()
    assert choice.words is not None
    words = choice.words.model_copy(update={"retention": Estimate(value=None, note="was not measured")})
    whole, part = (choice_part(each, tmp_path) for each in (choice, choice.model_copy(update={"words": words})))
    assert whole is not None
    assert part is not None
    assert "base + style words" in str(whole.scatter)
    assert part.scatter
    assert "base + style words" not in str(part.scatter)


def test_the_grid_of_epochs_always_shows_the_chosen_one(tmp_path: Path) -> None:
    candidates = tuple(case.make_candidate(epoch, 0.8, ["gone.png"]) for epoch in range(1, 31))
    choice = case.make_choice().model_copy(update={"candidates": candidates, "epoch": 17, "shown_prompts": ("a",)})
    part = choice_part(choice, tmp_path)
    assert part is not None
    epochs = [row.epoch for row in part.grids[0].rows]
    assert 17 in epochs
    assert epochs[-1] == 30
    assert len(epochs) + part.epochs_left_out == 30
    assert [tile.state for row in part.grids[0].rows for tile in row.tiles if tile and row.epoch == 17] == ["chosen"]


@pytest.mark.parametrize(
    ("metric", "value", "low", "high", "standing"),
    [
        ("retention_csd", 0.7, 0.5, 0.9, "met"), ("retention_csd", 0.7, 0.3, 1.1, "open"),
        ("retention_csd", 0.5, 0.45, 0.55, "missed"), ("clip_score_difference", -1.0, -1.4, -0.6, "met"),
        ("clip_score_difference", -1.0, -1.6, -0.4, "open"), ("clip_score_difference", -2.0, -2.2, -1.8, "missed"),
        ("memorisation_gap", 0.01, 0.0, 0.02, "met"), ("memorisation_gap", 0.01, -0.02, 0.04, "open"),
        ("memorisation_gap", 0.05, 0.04, 0.06, "missed"), ("lpips_ratio", 0.81, None, None, "met"),
        ("retention_csd", 0.7, None, None, "open"), ("kd_dinov2_difference", -0.5, -0.9, 0.1, "open"),
    ],
)  # fmt: skip
def test_a_goal_is_met_only_where_the_whole_interval_keeps_it(
    metric: str, value: float, low: float | None, high: float | None, standing: str
) -> None:
    score = Score(
        metric=metric, cell="c", value=value, low=low, high=high, n=200, higher_is_better=True, extractor="e",
        meaningful=True,
    )  # fmt: skip
    assert goals({})[metric].standing(score) == standing
    assert goals({})[metric].standing(score.model_copy(update={"meaningful": False})) is None


def test_the_fid_that_was_asked_for_is_told_and_never_judged() -> None:
    fid = goals({})["fid"]
    for value in (5.0, 300.0):
        score = Score(
            metric="fid", cell="c", value=value, low=value, high=value, n=200, higher_is_better=False, extractor="e",
            meaningful=True,
        )  # fmt: skip
        assert fid.standing(score) is None
    assert "below 30" in fid.text


def test_goals_follow_the_bounds_that_the_choice_was_bound_by() -> None:
    found = goals({"min_fidelity": -0.5, "min_diversity": 0.9, "max_memorisation": 0.01})
    assert [found[name].text for name in ("clip_score_difference", "lpips_ratio", "memorisation_gap")] == [
        "surely above −0.5", "at least 0.9", "surely below 0.01",
    ]  # fmt: skip


def test_every_metric_has_a_title_a_family_and_the_same_names_for_floor_and_run() -> None:
    assert (FLOOR, RUN) == (MEASURED_FLOOR, MEASURED_RUN)
    assert len(METRICS) > 20
    assert [name for name in METRICS if title_of(name) == name] == []
    assert [name for name in METRICS if family_of(name) == "Others"] == []


def test_the_yardsticks_hold_the_adapter_against_base_words_and_references() -> None:
    evaluation = case.make_rich_evaluation()
    rows = {row.metric: row for row in yardsticks(evaluation, main_cell(evaluation, "cartoon", 0.8), {})}
    style = rows["style_similarity_csd"]
    values = [score.value if score else None for score in (style.adapter, style.words, style.base, style.floor)]
    assert values == [0.57, 0.38, 0.31, 0.66]
    assert rows["retention_csd"].base is None
    assert rows["retention_csd"].standing == "met"
    assert next(iter(rows)) == "retention_csd"
    assert not [name for name in rows if name.startswith(("mix_", "trigger_"))]
    assert "style_similarity" not in rows
    blind = [score for score in evaluation.scores if not score.metric.endswith("_csd")]
    clip = blind[0].model_copy(update={"metric": "retention_clip", "cell": "cartoon 0.8"})
    unfit = evaluation.scores[0].model_copy(update={"metric": "retention_csd", "value": None, "cell": "cartoon 0.8"})
    alone = evaluation.model_copy(update={"scores": (clip, unfit)})
    main = main_cell(evaluation, "cartoon", 0.8)
    assert [row.metric for row in yardsticks(alone, main, {})] == ["retention_csd", "retention_clip"]


def test_what_was_not_measured_is_told_once_with_its_reason() -> None:
    evaluation = case.make_rich_evaluation()
    kid = evaluation.scores[-1]
    more = (*evaluation.scores, kid.model_copy(update={"cell": "x"}), kid.model_copy(update={"cell": "y"}))
    lines = missing_lines(evaluation.model_copy(update={"scores": more}))
    assert lines == ["KID of base and 2 more: not measured: weights are not there; fix: fetch-models"]
    fid = kid.model_copy(update={"metric": "fid"})
    (both,) = missing_lines(evaluation.model_copy(update={"scores": (kid, fid)}))
    assert both == "KID · FID: not measured: weights are not there; fix: fetch-models"


def test_best_and_worst_are_those_of_the_trusted_encoder(tmp_path: Path) -> None:
    evaluation = case.make_rich_evaluation()
    values, main = case.make_values(evaluation), main_cell(evaluation, "cartoon", 0.8)
    found = extremes(values, main, tmp_path)
    assert found is not None
    assert found.measure == "style_similarity_csd"
    each = np.array(values.measures["style_similarity_csd"].cells["cartoon 0.8"])
    assert [image.value for image in found.worst] == sorted(each)[:4]
    assert [image.value for image in found.best] == sorted(each)[::-1][:4]
    place = int(each.argmin())
    assert (found.worst[0].prompt, found.worst[0].seed) == (values.prompts[place], values.seeds[place])
    assert extremes(None, main, tmp_path) is None


def test_the_trigger_strip_shows_the_same_places_with_and_without(tmp_path: Path) -> None:
    evaluation = case.make_rich_evaluation()
    case.draw_pictures(tmp_path, evaluation)
    strip = trigger_strip(evaluation, main_cell(evaluation, "cartoon", 0.8), tmp_path)
    assert strip is not None
    assert strip.columns == (
        "base", "adapter, no trigger", "adapter, another style's trigger", "adapter, its own trigger",
    )  # fmt: skip
    assert [(row.prompt, row.seed) for row in strip.rows] == [(prompt, 1) for prompt in case.PROMPTS[:3]]
    assert all(uri for row in strip.rows for uri in row.uris)


def test_matrices_are_coloured_by_sign_and_size_and_the_trusted_encoder_comes_first() -> None:
    found = list(case.make_matrices())
    other = found[2].model_copy(update={"name": "mix_interference_clip", "extractor": "CLIP"})
    retention, interference = matrix_tables([*found, other], "mix_retention", "mix_interference")
    assert interference.extractor == case.CSD
    assert [cell.tint for _, cells in interference.rows for cell in cells][:2] == pytest.approx([-4 / 6, -1.0])
    assert [cell.blank for _, cells in interference.rows for cell in cells] == [False] * 4
    assert all(cell.tint > 0 for _, cells in retention.rows for cell in cells)
