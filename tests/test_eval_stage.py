"""The grid and the stage around it, with a made-up generator: what is drawn, scored, labelled and remembered."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from eval_runs import (
    SETTINGS,
    FakeGenerator,
    add_references,
    add_run,
    as_if_real,
    draw_prepared,
    make_spec,
    run_stage,
    trained,
)
from PIL import Image

from brushset.errors import VerificationFailed
from brushset.generator import Mix, Sampling
from brushset.partners import find_partners, partner_digests
from brushset.records import Cell
from eval.cells import PlannedCell, grid_places, plain_prompt, plan_cells, style_words
from eval.embedder import Embedder, Identity, Towers
from eval.frames import Frames
from eval.layout import FLOOR, RUN, layout_of
from eval.look import Missing
from eval.references import outside_digests
from eval.sample import Generator, draw_grid, sample_grid, sampled_cells
from eval.stage import flat_images
from eval.table import METRICS


def sample(generator: Generator, planned: Sequence[PlannedCell], folder: Path) -> tuple[Cell, ...]:
    """All cells at all places."""
    places = grid_places(SETTINGS)
    wanted = [(cell, place) for cell in planned for place in places]
    sample_grid(generator, [wanted], SETTINGS, folder, frames=Frames())
    return sampled_cells(planned, places)


def test_triggers_stand_first_in_the_cells_whose_adapters_they_call_and_in_no_other(tmp_path: Path):
    run = add_run(tmp_path, "cartoon", "1", trained("own", "base"))
    add_run(tmp_path, "anime", "1", trained("other", "base"))
    cells = plan_cells(make_spec(), find_partners(make_spec(), run).chosen)
    shown = [cell for cell in cells if cell.shown]
    assert [cell.name for cell in shown] == ["base", "base + style words", "cartoon 0.8", "cartoon 0.5 + anime 0.5"]
    assert cells[:4] == shown
    assert [cell.prompt("a cat") for cell in shown] == [
        "a cat",
        "cartoon style, a cat",
        "cartoonstyle, a cat",
        "cartoonstyle, animestyle, a cat",
    ]
    assert shown[3].folder == "cartoon_0.5+anime_0.5"
    assert {cell.name: cell.prompt("a cat") for cell in cells[4:]} == {
        "cartoon 0.4": "cartoonstyle, a cat",
        "cartoon 1": "cartoonstyle, a cat",
        "cartoon 0.8, no trigger": "a cat",
        "cartoon 0.8, trigger of anime": "animestyle, a cat",
        "cartoon 0.5": "cartoonstyle, a cat",
        "anime 0.5": "animestyle, a cat",
        "anime 1": "animestyle, a cat",
        "cartoon 0.3 + anime 0.7": "cartoonstyle, animestyle, a cat",
        "cartoon 0.7 + anime 0.3": "cartoonstyle, animestyle, a cat",
    }
    assert len({cell.folder for cell in cells}) == len(cells)


def test_only_the_cells_that_are_asked_for_are_planned():
    plain = SETTINGS.model_copy(update={"weights": (), "trigger_cells": False, "style_words": "ink drawing"})
    spec = make_spec().model_copy(update={"evaluate": plain})
    assert [cell.name for cell in plan_cells(spec, ())] == ["base", "base + style words", "cartoon 0.8"]
    assert style_words(spec) == "ink drawing"
    assert style_words(make_spec("my-old_ink")) == "my old ink style"


def test_clip_reads_a_prompt_without_trigger_and_style_words():
    spec = make_spec()
    assert plain_prompt("cartoonstyle, a cartoon of a cat, cartoon style", spec) == "a cat"
    assert plain_prompt("a cat on a fence", spec) == "a cat on a fence"
    assert plain_prompt("cartoonstyle", spec) == "cartoonstyle"


def test_every_part_of_the_layout_is_read_off_the_cells_roles(tmp_path: Path):
    run = add_run(tmp_path, "cartoon", "1", trained("own", "base"))
    add_run(tmp_path, "anime", "1", trained("other", "base"))
    planned = plan_cells(make_spec(), find_partners(make_spec(), run).chosen)
    cells = sample(FakeGenerator(), planned, tmp_path)
    found = layout_of(cells, "cartoon", 0.8)
    assert (found.base, found.words, found.main) == ("base", "base + style words", "cartoon 0.8")
    assert list(found.alone["cartoon"]) == [0.4, 0.5, 0.8, 1.0]
    assert found.alone["anime"] == {0.5: "anime 0.5", 1.0: "anime 1"}
    assert len(found.pair("anime")) == 3
    assert found.wrong_trigger == "cartoon 0.8, trigger of anime"
    assert not set(found.alone["anime"].values()) & set(found.judged)


def test_every_cell_has_the_same_prompts_and_seeds_with_the_specs_settings(tmp_path: Path):
    generator = FakeGenerator()
    cells = sample(generator, plan_cells(make_spec(), ()), tmp_path)
    assert [cell.mix for cell in cells[:3]] == [{}, {}, {"cartoon": 0.8}]
    assert [path.rpartition("/")[2] for path in cells[2].images] == [
        "0_1.png", "0_2.png", "0_9.png", "1_1.png", "1_2.png", "1_9.png",
    ]  # fmt: skip
    jobs, sampling = generator.asked[0]
    assert len(generator.asked) == 1
    assert [(job.prompt, job.seed) for job in jobs if not job.mix] == [
        (words + prompt, seed) for words in ("", "cartoon style, ") for prompt in SETTINGS.prompts for seed in (1, 2, 9)
    ]
    assert (sampling.steps, sampling.width, sampling.guidance) == (2, 64, 7.0)
    assert sampling.negative_prompt == SETTINGS.negative_prompt
    assert all((tmp_path / path).is_file() for cell in cells for path in cell.images)


def test_the_drawn_grid_has_a_column_a_cell_and_a_row_a_place(tmp_path: Path):
    cells = sample(FakeGenerator(), plan_cells(make_spec(), ()), tmp_path)
    sheet = draw_grid(cells, grid_places(SETTINGS), tmp_path)
    assert sheet.width > 2 * 64
    assert sheet.height > 6 * 64


def test_adapters_on_another_base_are_left_out_and_named(tmp_path: Path):
    run = add_run(tmp_path, "cartoon", "1", trained("own", "base"))
    add_run(tmp_path, "anime", "1", trained("a-old", "base"))
    add_run(tmp_path, "anime", "2", trained("a-new", "base"))
    add_run(tmp_path, "anime", "3", trained("a-elsewhere", "another base"))
    add_run(tmp_path, "ink", "1", trained("i", "another base"))
    (add_run(tmp_path, "lost", "1", trained("l", "base")).weights / "lora.safetensors").unlink()
    found = find_partners(make_spec(), run)
    assert [(partner.style, partner.sha256) for partner in found.chosen] == [("anime", "a-new")]
    assert found.left_out == ("ink: not mixed with, since its adapter was trained on another base model",)


def test_more_styles_than_max_pairs_are_named_too(tmp_path: Path):
    run = add_run(tmp_path, "cartoon", "1", trained("own", "base"))
    for style in ("anime", "ink", "wash"):
        add_run(tmp_path, style, "1", trained(style, "base"))
    spec = make_spec().model_copy(update={"evaluate": SETTINGS.model_copy(update={"max_pairs": 2})})
    found = find_partners(spec, run)
    assert [partner.style for partner in found.chosen] == ["anime", "ink"]
    assert found.left_out == ("wash: not mixed with, [evaluate] max_pairs = 2",)


def test_a_partner_whose_spec_cannot_be_read_is_left_out_and_named(tmp_path: Path):
    run = add_run(tmp_path, "cartoon", "1", trained("own", "base"))
    anime = add_run(tmp_path, "anime", "1", trained("a", "base"))
    anime.spec.write_text("no_such_key = 1\n" + anime.spec.read_text())
    add_run(tmp_path, "ink", "1", trained("i", "base")).record("train").write_text("{}")
    found = find_partners(make_spec(), run)
    assert found.chosen == ()
    assert [line.partition(":")[0] for line in found.left_out] == ["anime"]
    assert "no_such_key" in found.left_out[0]


def test_a_partner_retrained_changes_what_the_stage_depends_on(tmp_path: Path):
    run = add_run(tmp_path, "cartoon", "1", trained("own", "base"))
    before = partner_digests(make_spec(), run)
    add_run(tmp_path, "anime", "1", trained("first", "base"))
    between = partner_digests(make_spec(), run)
    add_run(tmp_path, "anime", "2", trained("second", "base"))
    assert before == []
    assert [entry[2] for entry in (*between, *partner_digests(make_spec(), run))] == ["first", "second"]


def test_the_stage_scores_every_cell_and_says_that_made_up_encoders_mean_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    record = trained("own", "base")
    run = add_run(tmp_path, "cartoon", "1", record)
    add_run(tmp_path, "anime", "1", trained("other", "base"))
    report, workdir, events = run_stage(run, make_spec(), record, monkeypatch)
    assert [cell.name for cell in report.cells] == [
        "base", "base + style words", "cartoon 0.8", "cartoon 0.5 + anime 0.5",
    ]  # fmt: skip
    every = (*report.cells, *report.more_cells)
    assert len(every) == 13
    assert all(path.startswith("eval/images/") for cell in every for path in cell.images)
    assert all((workdir / path.removeprefix("eval/")).is_file() for cell in every for path in cell.images)
    assert {score.metric for score in report.scores} == {*METRICS, "loss_gap"}
    measured = [score for score in report.scores if score.value is not None and score.cell != FLOOR]
    assert {score.n for score in measured} == {6}
    assert not report.meaningful
    assert not any(score.meaningful for score in report.scores if score.metric != "near_copies")
    assert "warning" not in events
    written = json.loads((workdir / "scores.json").read_text())
    assert list(written)[:2] == ["meaningful", "statement"]
    assert written["meaningful"] is False
    assert "say nothing about quality" in written["statement"]
    assert (workdir / "grid.png").is_file()


def test_every_score_has_an_interval_or_says_why_not_and_what_was_not_measured_is_never_a_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    record = trained("own", "base")
    report, _, _ = run_stage(add_run(tmp_path, "cartoon", "1", record), make_spec(), record, monkeypatch)
    for score in report.scores:
        if score.value is None:
            assert score.note.startswith("not measured: "), score
            assert (score.low, score.high, score.meaningful) == (None, None, False)
        elif score.low is None or score.high is None:
            assert score.interval.startswith("none: "), score
        else:
            assert score.low <= score.value <= score.high, score
            assert score.direction in {"higher", "lower", "neither"}
    lost = {score.metric: score.note for score in report.scores if score.value is None}
    assert "no other style" in lost["style_auc_csd"]
    assert "no other style" in lost["wrong_trigger_clip"]
    assert "held-out" in lost["memorisation_gap"]


def test_real_encoders_on_a_random_base_mean_nothing_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("eval.look.load_extractors", as_if_real)
    record = trained("own", "base")
    real, _, _ = run_stage(add_run(tmp_path / "real", "cartoon", "1", record), make_spec(), record, monkeypatch)
    assert real.meaningful
    assert all(score.meaningful == (score.value is not None) for score in real.scores)
    assert all(matrix.meaningful for matrix in real.matrices)
    record = trained("own", "base", base_random=True)
    report, _, _ = run_stage(add_run(tmp_path, "cartoon", "1", record), make_spec(), record, monkeypatch)
    assert not report.meaningful
    assert not any(each.meaningful for each in (*report.scores, *report.matrices, *report.nearest))
    assert any("made of random numbers" in note for note in report.notes)


def test_weights_that_are_missing_leave_the_others_scores_meaningful(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    missing = Missing(Identity("CSD", "", meaningful=False, note="CSD is not on this machine; fix: go online"))
    monkeypatch.setattr("eval.look.load_extractors", lambda spec: as_if_real(spec) | {"csd": missing})
    record = trained("own", "base")
    report, _, events = run_stage(add_run(tmp_path, "cartoon", "1", record), make_spec(), record, monkeypatch)
    assert report.meaningful
    lost = [score for score in report.scores if score.metric.endswith("_csd")]
    assert {score.value for score in lost} == {None}
    assert {score.note for score in lost} == {"not measured: CSD is not on this machine; fix: go online"}
    assert events.count("warning") == 1
    assert any("CSD is not on this machine" in note for note in report.notes)


def blind(images: Sequence[Image.Image]) -> np.ndarray:
    """Rows that have nothing to do with the style."""
    keys = [zlib.crc32(image.tobytes()) for image in images]
    return np.stack([np.random.default_rng(key).normal(size=16) for key in keys]).astype(np.float32)


def test_an_encoder_that_cannot_tell_styles_apart_is_not_used_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    csd = Embedder(Identity("blind CSD", "", meaningful=True), lambda: Towers(blind))
    monkeypatch.setattr("eval.look.load_extractors", lambda spec: as_if_real(spec) | {"csd": csd})
    record = trained("own", "base")
    run = add_run(tmp_path, "cartoon", "1", record)
    add_references(add_run(tmp_path, "anime", "1", trained("other", "base")), turned=90)
    report, _, _ = run_stage(run, make_spec(), record, monkeypatch, held=6)
    auc = next(score for score in report.scores if score.metric == "style_auc_csd")
    assert auc.cell == RUN
    assert auc.value is not None
    assert auc.value < 0.9
    styled = [score for score in report.scores if score.extractor == "blind CSD" and score.metric != "style_auc_csd"]
    assert len(styled) > 5
    assert {score.value for score in styled} == {None}
    assert all("cannot tell the references' styles apart: AUC 0." in score.note for score in styled)


def test_mixes_are_measured_against_the_partners_own_references(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    record = trained("own", "base")
    run = add_run(tmp_path, "cartoon", "1", record)
    other = add_run(tmp_path, "anime", "1", trained("other", "base"))
    before = outside_digests(make_spec(), run)
    add_references(other, turned=90)
    assert outside_digests(make_spec(), run) != before
    report, _, _ = run_stage(run, make_spec(), record, monkeypatch, held=6)
    matrices = {matrix.name: matrix for matrix in report.matrices}
    interference = matrices["mix_interference_csd"]
    assert interference.columns == ("cartoon", "anime")
    assert len(interference.rows) == 3
    assert all(entry.value is not None for row in interference.entries for entry in row)
    assert matrices["confusion_csd"].columns == ("cartoon", "anime", "base")
    assert matrices["confusion_csd"].rows == ("base", "base + style words", "cartoon 0.8", "anime 1")
    cells = {score.cell for score in report.scores if score.metric == "mix_monotonicity_csd"}
    assert cells == {"cartoon + anime"}


def test_the_images_most_like_training_images_are_shown_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The generator gives back a prepared image: it is found, and called a copy."""
    record = trained("own", "base")
    run = add_run(tmp_path, "cartoon", "1", record)

    def copy_one(self: FakeGenerator, prompt: str, seed: int, mix: Mix, sampling: Sampling) -> Image.Image:
        if mix == (("cartoon", 0.8),) and seed == 9:
            return Image.open(run.images / "3.png").resize((64, 64))
        return made(self, prompt, seed, mix, sampling)

    made = FakeGenerator._image
    monkeypatch.setattr(FakeGenerator, "_image", copy_one)
    monkeypatch.setattr("eval.memorisation._LEAST_TRAINED", 4)
    report, workdir, _ = run_stage(run, make_spec(), record, monkeypatch)
    first = report.nearest[0]
    assert first.trained == "images/3.png"
    assert first.image.endswith("_9.png")
    assert (workdir / first.image.removeprefix("eval/")).is_file()
    assert first.copied
    near = next(score for score in report.scores if (score.metric, score.cell) == ("near_copies", "cartoon 0.8"))
    assert near.value is not None
    assert near.value > 0


def test_the_stage_gives_the_same_scores_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    record = trained("own", "base")
    found = []
    for name in ("one", "two"):
        run = add_run(tmp_path / name, "cartoon", "1", record)
        found.append(run_stage(run, make_spec(), record, monkeypatch)[0])
    assert found[0] == found[1]


def test_a_base_that_is_not_the_one_trained_on_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    record = trained("own", "base")
    run = add_run(tmp_path, "cartoon", "1", record)
    with pytest.raises(VerificationFailed, match="not the one that the adapter was trained on"):
        run_stage(run, make_spec(), record, monkeypatch, base_sha256="changed")


def test_held_out_images_are_the_references_of_style_similarity_and_the_report_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    record = trained("own", "base")
    values = {}
    for held in (0, 3, 6):
        run = add_run(tmp_path / str(held), "cartoon", "1", record)
        report, _, _ = run_stage(run, make_spec(), record, monkeypatch, held=held)
        notes = {score.note for score in report.scores if score.metric == "style_similarity" and score.cell == "base"}
        values[held] = [score.value for score in report.scores if score.metric == "style_similarity"]
        used = "6 references, held out, never trained on" if held == 6 else "5 references, trained on"
        assert notes == {used}
        fid = [score for score in report.scores if score.metric == "fid" and score.cell == "base"]
        assert fid[0].note.startswith("5 references, trained on")
        assert any(("never trained on; FID" in note) == (held == 6) for note in report.notes)
    assert values[0] == values[3] != values[6]


def test_a_held_out_image_that_was_trained_on_ends_the_evaluation_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    record = trained("own", "base")
    run = add_run(tmp_path, "cartoon", "1", record)
    draw_prepared(run, held=6)
    (run.images / "stray.png").write_bytes((run.heldout / "7.png").read_bytes())
    monkeypatch.setattr("eval.stage._load_generator", lambda *_: pytest.fail("it began"))
    with pytest.raises(VerificationFailed, match=r"stray\.png: a copy of the held-out heldout/7\.png"):
        run_stage(run, make_spec(), record, monkeypatch, held=6)


def test_images_of_one_colour_are_found(tmp_path: Path):
    cells = sample(FakeGenerator(), plan_cells(make_spec(), ()), tmp_path)
    Image.new("RGB", (64, 64), "black").save(tmp_path / cells[1].images[2])
    assert flat_images(cells, tmp_path, Frames()) == [cells[1].images[2]]
