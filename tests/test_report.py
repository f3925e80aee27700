"""The report: self-contained, escaped, and honest about what a run proves."""

from __future__ import annotations

import html.parser
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report_case import draw_pictures

from brushset.load import spec_text
from brushset.page.pictures import spread, thumbnail
from brushset.page.plots import plot_loss, running_mean
from brushset.page.template import duration
from brushset.page.training import training_samples
from brushset.page.verdict import judge
from brushset.paths import RunPaths
from brushset.pipeline import StageContext
from brushset.records import (
    Adapter,
    Attempt,
    Audit,
    Caption,
    Captions,
    Cell,
    Checkpoint,
    Choice,
    EngineConfig,
    EvalReport,
    Exports,
    Finding,
    LossPoint,
    Package,
    PlaceValues,
    Prepared,
    PreparedImage,
    Record,
    Report,
    Score,
    Trained,
    TrainSample,
    ValidationPoint,
)
from brushset.spec import EvaluateSection, StyleSpec
from brushset.stage_records import StageRecord
from brushset.stages.report import NEEDS, STAGE

NASTY = '<script>alert("x")</script><img src=x onerror=alert(1)> & "quotes" \'n\' {{ 7 * 7 }}'
SETTINGS = EvaluateSection(prompts=("a cat", "a house <b>"), seeds=(1, 2), width=64, height=64)
METRICS = {"clip_score": True, "style_similarity": True, "fid": False}


def make_spec(**changes: Any) -> StyleSpec:
    return StyleSpec(**({"name": "cartoon", "trigger": "cartoonstyle", "evaluate": SETTINGS} | changes))


def make_trained(*, base_random: bool = False, points: int = 120) -> Trained:
    falling = 0.14 + 0.03 * np.exp(-np.arange(points) / 30) + np.random.default_rng(0).normal(0, 0.02, points)
    return Trained(
        engine="native", engine_version="0.1.0", command=("python", "train.py", "--name", "a b"),
        weights="weights/cartoon.safetensors", weights_sha256="ab" * 32,
        checkpoints=(Checkpoint(path="weights/cartoon-000001.safetensors", epoch=1, step=60, sha256="cd"),),
        steps=points, epochs=2, losses=tuple(
            LossPoint(step=index + 1, loss=float(loss), lr=1e-4 * min(1, index / 6) * (1 - index / max(points, 1)))
            for index, loss in enumerate(falling)
        ), seconds=754.3, device="cpu", modules=264, tensors=792, base_sha256="ef" * 32, base_random=base_random,
    )  # fmt: skip


def make_evaluation(*, meaningful: bool = True, n: int = 4) -> EvalReport:
    cells = {"base": {}, "cartoon 0.8": {"cartoon": 0.8}, "cartoon 0.5 + anime 0.5": {"cartoon": 0.5, "anime": 0.5}}
    scores = [
        Score(
            metric=metric, cell=cell, value=0.5 + 0.1 * index, n=n, higher_is_better=up, extractor="clip x",
            meaningful=meaningful, note="20 references" if metric != "clip_score" else "",
        )
        for index, cell in enumerate(cells) for metric, up in METRICS.items()
    ]  # fmt: skip
    scores[-1] = scores[-1].model_copy(update={"value": None, "note": "not measured: 1 image"})
    return EvalReport(
        cells=tuple(
            Cell(
                name=name, mix=mix,
                images=tuple(f"eval/images/{index}/{p}_{s}.png" for p in (0, 1) for s in SETTINGS.seeds),
            )
            for index, (name, mix) in enumerate(cells.items())
        ),
        scores=tuple(scores), grid="eval/grid.png", prompts=SETTINGS.prompts, seeds=SETTINGS.seeds,
        meaningful=meaningful, notes=("references are the training images",),
    )  # fmt: skip


def draw_images(run: RunPaths, evaluation: EvalReport, prepared: Prepared) -> None:
    random = np.random.default_rng(0)
    for path in [path for cell in evaluation.cells for path in cell.images]:
        (run.root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(run.root / path)
    run.images.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(prepared.images):
        picture = Image.linear_gradient("L").rotate(20 * index).resize((image.width_px, image.height_px))
        picture.convert("RGB").save(run.images / image.name)


def make_records(folder: str, *, trained: Trained, evaluation: EvalReport) -> dict[type[Record], Record]:
    images = tuple(
        PreparedImage(
            name=f"{index:02d}.png", source=f"{NASTY}/{index}.png" if index == 0 else f"{index}.png", source_sha256="x",
            width_px=320, height_px=256, upscaled_by=1.0,
        )
        for index in range(20)
    )  # fmt: skip
    captions = tuple(
        Caption(
            image=image.name, text=f"cartoonstyle, {NASTY}" if index == 0 else "cartoonstyle, a hill", source="blip"
        )
        for index, image in enumerate(images)
    )
    return {
        Audit: Audit(
            folder=folder, found=21, ok=18, needs_upscaling=2, unusable=1, verdict="too few",
            reasons=(f"{NASTY}: cannot be read",), formats={"PNG": 21}, min_side_px=256, median_side_px=300,
            max_side_px=320, with_sidecar=0,
            findings=tuple(
                Finding(code=code, severity=severity, count=1, images=(), text=f"{code} {NASTY}", fix="do it")
                for code, severity in (("blurry", "warning"), ("converted", "note"))
            ),
        ),
        Prepared: Prepared(images=images, skipped={"bad.png": "truncated"}),
        Captions: Captions(captioner="blip", trigger="cartoonstyle", captions=captions),
        EngineConfig: EngineConfig(
            engine="native", images=20, repeats=1, arithmetic="repeats 1", batches_per_epoch=5, epochs=2, steps=10, buckets={"512x512": 15, "576x448": 5}
        ),
        Trained: trained,
        Adapter: Adapter(path="adapter", modules=264, max_relative_error=1.3e-7),
        EvalReport: evaluation,
        Exports: Exports(
            packages=(
                Package(
                    target="a1111", folder="export/a1111", files=("cartoon.safetensors",), install="copy into models/Lora"
                ),
            ),
            trigger="cartoonstyle", weight=0.8, weights="weights/cartoon-000008.safetensors", weights_sha256="12" * 32, epoch=8,
        ),
    }  # fmt: skip


def make_report(
    root: Path, *, spec: StyleSpec | None = None, trained: Trained | None = None, evaluation: EvalReport | None = None,
    choice: Choice | None = None, values: PlaceValues | None = None,
) -> tuple[Report, str]:  # fmt: skip
    """Runs the stage on hand-made records; returns its record and the page."""
    spec, run = spec or make_spec(), RunPaths(root / "runs" / "cartoon" / "20250101-000000-abcd")
    evaluation = evaluation or make_evaluation()
    records = make_records(str(root), trained=trained or make_trained(), evaluation=evaluation)
    draw_images(run, evaluation, records[Prepared])  # type: ignore[arg-type]
    if choice is not None:
        records[Choice] = choice
        draw_pictures(run.root, evaluation, choice)
    if values is not None:
        (run.eval / "values.json").write_text(values.model_dump_json())
    run.spec.write_text(spec_text(spec))
    run.record("x").parent.mkdir(exist_ok=True)
    for index, name in enumerate(NEEDS):
        record = StageRecord(
            stage=name, version=1, digest="d", started_at=0, ended_at=1.5 * index, outputs={}, data={},
            taken_from="an-older-run" if name == "audit" else "",
        )  # fmt: skip
        run.record(name).write_text(record.model_dump_json())
    workdir = run.workdir("report")
    workdir.mkdir()
    report = STAGE.run(StageContext(spec, run, workdir, lambda *_, **__: None, records, None))
    return report, (workdir / "report.html").read_text(encoding="utf-8")


class Loads(html.parser.HTMLParser):
    """What a browser would fetch, and which elements there are."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []
        self.handlers: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in {"src", "href", "xlink:href", "srcset", "poster", "data", "action"}:
                self.found.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)


def test_what_the_audit_warns_of_is_told_and_its_page_linked(tmp_path: Path):
    _, page = make_report(tmp_path)
    assert "blurry &lt;script&gt;" in page
    assert "; fix: do it" in page
    assert "converted &lt;script&gt;" not in page


def test_the_page_loads_nothing_from_outside(tmp_path: Path):
    _, page = make_report(tmp_path)
    loads = Loads(page)
    assert len(loads.found) > 12 + 12, "pictures of the grid and of the training images"
    outside = [value for value in loads.found if not value.startswith(("data:image/", "#"))]
    assert outside == ["audit/index.html"], "a link to what lies beside the page, which nothing loads"
    assert not {"script", "link", "iframe", "object", "embed"} & set(loads.tags)
    css = "".join(re.findall(r"<style>.*?</style>", page, re.DOTALL))
    assert "@import" not in css
    assert not [target for target in re.findall(r"url\(([^)]*)\)", page) if not target.startswith("#")]
    assert len(page) < 3_000_000


def test_captions_file_names_and_prompts_are_escaped(tmp_path: Path):
    _, page = make_report(tmp_path)
    assert "<script>" not in page
    assert "onerror=alert(1)>" not in page
    assert "a house <b>" not in page
    assert page.count("&lt;script&gt;") >= 3, "in a caption, a file name and an audit reason"
    assert "{{ 7 * 7 }}" in page, "a template in a caption is text"
    assert not Loads(page).handlers


def test_the_verdict_stands_before_everything_else(tmp_path: Path):
    report, page = make_report(tmp_path, evaluation=make_evaluation(n=200))
    assert report.verdict == "Closer to the style than the base"
    assert page.index(f"<strong>{report.verdict}</strong>") < page.index("<h2>")
    assert report.path == "report.html"


@pytest.mark.parametrize("what", ["smoke", "random"])
def test_a_run_that_proves_only_the_machinery_says_so_whatever_its_scores(tmp_path: Path, what: str):
    spec = make_spec(smoke=what == "smoke")
    report, page = make_report(
        tmp_path, spec=spec, trained=make_trained(base_random=what == "random"), evaluation=make_evaluation()
    )
    assert report.verdict == "This run proves only that the machinery works"
    assert "no number and no image below says anything about quality" in page
    assert "not for use" in page


def test_made_up_scores_are_flagged_and_give_no_verdict_on_the_style(tmp_path: Path):
    report, page = make_report(tmp_path, evaluation=make_evaluation(meaningful=False))
    assert report.verdict == "Trained, and not scored"
    scored = [score for score in make_evaluation().scores if score.value is not None]
    assert page.count('<span class="flag">meaningless</span>') >= len(scored)
    _, honest = make_report(tmp_path / "b")
    assert '<span class="flag">meaningless</span>' not in honest


def test_few_images_are_called_pointers_and_many_are_not():
    few = judge(make_spec(), make_trained(), make_evaluation(n=4))
    many = judge(make_spec(), make_trained(), make_evaluation(n=200))
    assert few.headline == "Seems closer to the style than the base"
    assert "With 4 images a cell these are pointers" in few.text
    assert "pointers" not in many.text
    assert "0.600, the base's 0.500" in many.text


def test_an_adapter_that_moved_away_from_the_style_is_not_praised():
    evaluation = make_evaluation(n=200)
    worse = [
        score.model_copy(update={"value": 0.4}) if score.cell == "cartoon 0.8" else score for score in evaluation.scores
    ]
    verdict = judge(make_spec(), make_trained(), evaluation.model_copy(update={"scores": tuple(worse)}))
    assert (verdict.tone, verdict.headline) == ("worse", "No closer to the style than the base")


def test_scores_stand_with_n_direction_extractor_and_reason(tmp_path: Path):
    _, page = make_report(tmp_path)
    assert "↑ higher is better" in page
    assert "↓ lower is better" in page
    assert "20 references" in page
    assert "; n = " in page
    assert "By clip x." in page
    assert "FID of cartoon 0.5 + anime 0.5: not measured: 1 image." in page


def test_the_page_holds_what_a_reader_asks_for(tmp_path: Path):
    _, page = make_report(tmp_path)
    for wanted in (
        "cartoonstyle", "too few", "512 × 512", "576 × 448", "copy into models/Lora", "1.3e-07",
        "weights/cartoon-000001.safetensors", "12 min 34 s", "taken from run an-older-run", "train.py --name &#39;a b&#39;",
        "network_dim = 32", "blip 20", "ab" * 32,
    ):  # fmt: skip
        assert wanted in page, wanted


def test_what_is_folded_is_printed_open(tmp_path: Path):
    _, page = make_report(tmp_path)
    printed = page[page.index("@media print") : page.index("</style>")]
    assert "<details>" in page
    assert "details::details-content { content-visibility: visible;" in printed


def test_the_page_is_the_same_twice(tmp_path: Path):
    assert make_report(tmp_path / "a")[1].replace(str(tmp_path / "a"), "") == make_report(tmp_path / "b")[1].replace(
        str(tmp_path / "b"), ""
    )


def test_an_image_that_is_gone_shows_as_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert thumbnail(tmp_path / "gone.png") == ""
    monkeypatch.setattr("brushset.page.pictures.thumbnail", lambda _: "")
    _, page = make_report(tmp_path)
    assert page.count("image is gone") == 12 + 12


def test_thumbnails_are_small_and_tiny_images_stay_exact(tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "tiny.png")
    Image.fromarray(noise).resize((1024, 512)).save(tmp_path / "large.png")
    assert thumbnail(tmp_path / "tiny.png").startswith("data:image/png;base64,")
    large = thumbnail(tmp_path / "large.png")
    assert large.startswith("data:image/jpeg;base64,")
    assert len(large) < 40_000


def test_the_loss_curve_uses_the_pages_colours_and_no_outside_resource():
    svg = plot_loss(make_trained().losses)
    assert "var(--blue)" in svg
    assert svg.startswith('<svg role="img"')
    assert not re.findall(r'(?:href|src)="(?!#)', svg)
    assert "#0303" not in svg


@pytest.mark.parametrize("points", [0, 1])
def test_without_two_points_there_is_no_curve_but_a_sentence(points: int, tmp_path: Path):
    assert plot_loss(make_trained(points=points).losses) == ""
    _, page = make_report(tmp_path, trained=make_trained(points=points))
    assert f"the trainer reported {points} point" in page


def test_two_points_and_points_without_a_rate_are_drawn():
    points = [LossPoint(step=1, loss=0.2), LossPoint(step=2, loss=0.1)]
    svg = plot_loss(points)
    assert "<svg" in svg
    assert "learning rate" not in svg


def test_the_running_mean_keeps_a_constant_and_the_ends():
    assert running_mean(np.full(100, 3.0)) == pytest.approx(np.full(100, 3.0))
    ramp = running_mean(np.arange(200.0))
    assert ramp[100] == pytest.approx(100)
    assert ramp[0] == pytest.approx(2.5)


def test_samples_are_spread_evenly():
    assert spread([1, 2, 3], 12) == [1, 2, 3]
    assert spread(list(range(100)), 4) == [0, 25, 50, 75]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.44, "0.4 s"), (12.3, "12 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (59.7, "1 min 00 s")],
)
def test_durations_read_well(seconds: float, shown: str):
    assert duration(seconds) == shown


def test_run_jsons_surroundings_are_shown_where_there_is_one(tmp_path: Path):
    run = tmp_path / "runs" / "cartoon" / "20250101-000000-abcd"
    run.mkdir(parents=True)
    manifest = {
        "run_id": "r", "style": "cartoon", "identity": "i", "spec_digest": "s", "smoke": False, "created_at": 0,
        "updated_at": 0, "argv": ["orchestrate.py", "--style", "cartoon", "--images", "a folder"], "commit": "c0ffee",
        "dirty": True, "engine": "native", "engine_reason": "asked for", "lock_sha256": "1" * 64,
        "packages": {"torch": "2.10.0"}, "python": "3.11", "platform": "Linux", "device": "CPU", "seed": 42, "images": {},
    }  # fmt: skip
    (run / "run.json").write_text(json.dumps(manifest))
    _, page = make_report(tmp_path)
    assert "orchestrate.py --style cartoon --images &#39;a folder&#39;" in page
    assert "with uncommitted changes" in page
    assert "torch 2.10.0" in page


def test_validation_samples_and_attempts_of_a_training_are_shown(tmp_path: Path):
    plain = make_trained()
    trained = plain.model_copy(
        update={
            "validation": tuple(ValidationPoint(epoch=e, step=20 * e, loss=0.2 - 0.01 * e) for e in range(1, 7)),
            "best_epoch": 6,
            "samples": (TrainSample(epoch=2, prompt="cartoonstyle, <a cat>", path="logs/trainer/sample/gone.png"),),
            "attempts": (
                Attempt(
                    number=1, from_step=0, to_step=50, batch_size=4, gradient_accumulation_steps=1, seconds=60,
                    gradient_checkpointing=False, ending="out of memory", log="logs/train-001.log",
                ),
                Attempt(
                    number=2, from_step=40, to_step=120, batch_size=2, gradient_accumulation_steps=2, seconds=90,
                    gradient_checkpointing=True, ending="", log="logs/train.log",
                ),
            ),
        }
    )  # fmt: skip
    _, page = make_report(tmp_path, trained=trained)
    assert "those of epoch 6" in page
    assert "cartoonstyle, &lt;a cat&gt;" in page
    assert "image is gone" in page
    assert "out of memory" in page
    assert "killed with brushset" in page
    assert "2 × 2, gradient checkpointing" in page
    _, without = make_report(tmp_path / "other", trained=plain)
    for heading in ("What it made while training", "Attempts", "held-out images, measured"):
        assert heading in page
        assert heading not in without
    assert plot_loss(trained.losses, trained.validation).count("stroke-dasharray") > plot_loss(trained.losses).count(
        "stroke-dasharray"
    )


def test_of_many_sampled_epochs_some_are_shown_the_last_among_them(tmp_path: Path):
    samples = tuple(TrainSample(epoch=e, prompt=p, path="gone.png") for e in range(1, 41) for p in "abcdef")
    shown = training_samples(make_trained().model_copy(update={"samples": samples}), tmp_path)
    assert len(shown.epochs) == 8
    assert shown.epochs[-1].epoch == 40
    assert shown.prompts == ("a", "b", "c", "d")
