"""The grid and the stage around it, with a made-up generator: what is drawn, scored, labelled and remembered."""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from brushset.errors import VerificationFailed
from brushset.generator import Mix, Sampling
from brushset.load import spec_text
from brushset.paths import RunPaths
from brushset.pipeline import StageContext, StageRecord
from brushset.prepare.holdout import seal_of
from brushset.records import BaseFile, EvalReport, Prepared, PreparedImage, Trained
from brushset.spec import EvaluateSection, StyleSpec
from eval.features import load_clip, load_inception
from eval.partners import find_partners, partner_digests
from eval.sample import draw_grid, plan_cells, sample_grid
from eval.score import FLOOR_CELL
from eval.stage import STAGE, flat_images

SETTINGS = EvaluateSection(
    prompts=("a cat", "a house"), seeds=(1, 2, 9), width=64, height=64, steps=2, batch_size=4,
    clip_model="random", inception="random",
)  # fmt: skip


class FakeGenerator:
    """Noise that depends on prompt, seed and mix; remembers what it was asked."""

    def __init__(self, *_: object, **__: object) -> None:
        self.loaded: dict[str, Path] = {}
        self.asked: list[tuple[list[tuple[str, int]], Mix, Sampling]] = []

    def load_lora(self, path: Path, name: str) -> None:
        assert path.is_file()
        self.loaded[name] = path

    def generate_each(
        self, wanted: Sequence[tuple[str, int]], lora_configs: Mix = (), sampling: Sampling | None = None
    ):
        assert sampling
        self.asked.append((list(wanted), lora_configs, sampling))
        return [self._image(prompt, seed, lora_configs, sampling) for prompt, seed in wanted]

    def _image(self, prompt: str, seed: int, mix: Mix, sampling: Sampling) -> Image.Image:
        random = np.random.default_rng(zlib.crc32(repr((prompt, seed, mix)).encode()))
        return Image.fromarray(random.integers(0, 256, (sampling.height, sampling.width, 3), dtype=np.uint8))


def make_spec(name: str = "cartoon", **changes: Any) -> StyleSpec:
    return StyleSpec(name=name, trigger=f"{name}style", evaluate=SETTINGS, **changes)


def trained(sha256: str, base: str, *, base_random: bool = False) -> Trained:
    return Trained(
        engine="native", engine_version="1", command=(), weights="weights/lora.safetensors", weights_sha256=sha256,
        checkpoints=(), steps=2, epochs=1, losses=(), seconds=1, device="cpu", modules=264, tensors=792,
        base_sha256=base, base_random=base_random,
    )  # fmt: skip


def add_run(runs: Path, style: str, run_id: str, record: Trained) -> RunPaths:
    run = RunPaths(runs / style / run_id)
    run.weights.mkdir(parents=True)
    (run.weights / "lora.safetensors").write_bytes(b"weights")
    run.manifest.write_text("{}")
    run.spec.write_text(spec_text(make_spec(style)))
    stage = StageRecord(
        stage="train", version=1, digest="d", started_at=0, ended_at=1, outputs={}, data=record.model_dump(mode="json")
    )
    run.record("train").parent.mkdir()
    run.record("train").write_text(stage.model_dump_json())
    return run


def draw_prepared(run: RunPaths, *, held: int) -> Prepared:
    """Five images trained on, and some held out, in the run."""
    run.heldout.mkdir(parents=True, exist_ok=True)
    images = []
    for index in range(5 + held):
        name, size = f"{'heldout/' if index >= 5 else ''}{index}.png", (96 + 8 * index, 80)
        Image.linear_gradient("L").rotate(40 * index).resize(size).convert("RGB").save(run.images / name)
        images.append(
            PreparedImage(
                name=name, source="s", source_sha256=f"{index}", width_px=size[0], height_px=80, upscaled_by=1
            )
        )
    return Prepared(images=tuple(images[:5]), heldout=tuple(images[5:]), seal=seal_of(images[5:]), skipped={})


def run_stage(
    run: RunPaths,
    spec: StyleSpec,
    record: Trained,
    patch: pytest.MonkeyPatch,
    *,
    base_sha256: str = "base",
    held: int = 0,
) -> tuple[EvalReport, Path, list[str]]:
    base = BaseFile(name="b", path="/b", kind="folder", sha256=base_sha256, random=False, narrow=False)
    patch.setattr("eval.stage.resolve_base", lambda *_: base)
    patch.setattr("eval.stage.MultiLoRAGenerator", FakeGenerator)
    prepared = draw_prepared(run, held=held)
    workdir = run.workdir("evaluate")
    workdir.mkdir()
    records = {Trained: record, Prepared: prepared}
    events: list[str] = []
    context = StageContext(spec, run, workdir, lambda event, **_: events.append(event), records, None)
    return STAGE.run(context), workdir, events


def test_triggers_stand_first_in_the_cells_whose_adapters_they_call_and_in_no_other(tmp_path: Path):
    run = add_run(tmp_path, "cartoon", "1", trained("own", "base"))
    add_run(tmp_path, "anime", "1", trained("other", "base"))
    cells = plan_cells(make_spec(), find_partners(make_spec(), run).chosen)
    assert [cell.name for cell in cells] == ["base", "cartoon 0.8", "cartoon 0.5 + anime 0.5"]
    assert [cell.prompt("a cat") for cell in cells] == [
        "a cat",
        "cartoonstyle, a cat",
        "cartoonstyle, animestyle, a cat",
    ]
    assert cells[2].folder == "cartoon_0.5+anime_0.5"


def test_every_cell_has_the_same_prompts_and_seeds_with_the_specs_settings(tmp_path: Path):
    generator = FakeGenerator()
    cells = sample_grid(generator, plan_cells(make_spec(), ()), SETTINGS, tmp_path)
    assert [cell.mix for cell in cells] == [{}, {"cartoon": 0.8}]
    assert [path.rpartition("/")[2] for path in cells[1].images] == [
        "0_1.png", "0_2.png", "0_9.png", "1_1.png", "1_2.png", "1_9.png",
    ]  # fmt: skip
    assert generator.asked[0][0] == [(prompt, seed) for prompt in SETTINGS.prompts for seed in (1, 2, 9)]
    sampling = generator.asked[1][2]
    assert (sampling.steps, sampling.width, sampling.guidance) == (2, 64, 7.0)
    assert sampling.negative_prompt == SETTINGS.negative_prompt
    assert all((tmp_path / path).is_file() for cell in cells for path in cell.images)


def test_the_drawn_grid_has_a_column_a_cell_and_a_row_a_place(tmp_path: Path):
    cells = sample_grid(FakeGenerator(), plan_cells(make_spec(), ()), SETTINGS, tmp_path)
    sheet = draw_grid(cells, SETTINGS, tmp_path)
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
    assert [cell.name for cell in report.cells] == ["base", "cartoon 0.8", "cartoon 0.5 + anime 0.5"]
    assert all(path.startswith("eval/images/") for cell in report.cells for path in cell.images)
    assert all((workdir / path.removeprefix("eval/")).is_file() for cell in report.cells for path in cell.images)
    assert len(report.scores) == 3 * 3 + 2
    assert {score.n for score in report.scores if score.cell != FLOOR_CELL} == {6}
    assert not report.meaningful
    assert not any(score.meaningful for score in report.scores)
    assert "warning" not in events
    written = json.loads((workdir / "scores.json").read_text())
    assert list(written)[:2] == ["meaningful", "statement"]
    assert written["meaningful"] is False
    assert "say nothing about quality" in written["statement"]
    assert (workdir / "grid.png").is_file()


def test_real_encoders_on_a_random_base_mean_nothing_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    as_if_real = {
        name: dataclasses.replace(made_up, meaningful=True)
        for name, made_up in (
            ("clip", load_clip("random", device="cpu")),
            ("inception", load_inception("random", device="cpu")),
        )
    }
    monkeypatch.setattr("eval.stage.load_extractors", lambda _: as_if_real)
    record = trained("own", "base")
    real, _, _ = run_stage(add_run(tmp_path / "real", "cartoon", "1", record), make_spec(), record, monkeypatch)
    assert real.meaningful
    assert all(score.meaningful for score in real.scores)
    record = trained("own", "base", base_random=True)
    report, _, _ = run_stage(add_run(tmp_path, "cartoon", "1", record), make_spec(), record, monkeypatch)
    assert not report.meaningful
    assert not any(score.meaningful for score in report.scores)
    assert any("made of random numbers" in note for note in report.notes)


def test_the_stage_gives_the_same_scores_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    record = trained("own", "base")
    found = []
    for name in ("one", "two"):
        run = add_run(tmp_path / name, "cartoon", "1", record)
        found.append(run_stage(run, make_spec(), record, monkeypatch)[0].scores)
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
    cells = sample_grid(FakeGenerator(), plan_cells(make_spec(), ()), SETTINGS, tmp_path)
    Image.new("RGB", (64, 64), "black").save(tmp_path / cells[1].images[2])
    assert flat_images(cells, tmp_path) == [cells[1].images[2]]
