"""Preprocess: every image becomes a file of ours, of one kind, named by its content; originals stay as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from brushset.bases.tokenizer import clip_tokenizer_folder
from brushset.buckets import BucketRules, list_buckets, plan_buckets
from brushset.errors import InputError
from brushset.files import digest_files, list_files, sha256_file
from brushset.images import open_as_rgb
from brushset.kohya.effective import ask_sd_scripts
from brushset.kohya.source import Source
from brushset.log import silent
from brushset.paths import PROJECT, RunPaths
from brushset.pipeline import Pipeline
from brushset.prepare.holdout import verify_holdout
from brushset.records import Prepared
from brushset.spec import BaseSection, CaptionSection, DatasetSection, StyleSpec, TrainSection
from brushset.stages import audit, caption, configure, preprocess

DATA = PROJECT.parent / "shared" / "data"
DEFAULT_TRAIN = TrainSection()
STAGES = (audit.STAGE, preprocess.STAGE)


def pipeline(tmp_path: Path, folder: Path, train: TrainSection = DEFAULT_TRAIN, **dataset: object) -> Pipeline:
    spec = StyleSpec(name="mine", trigger="t", dataset=DatasetSection(images=str(folder), **dataset), train=train)
    return Pipeline(spec, RunPaths(tmp_path / "runs" / "mine" / "one"), silent)


def prepared(run: Pipeline) -> Prepared:
    run.execute(STAGES)
    return Prepared.model_validate(run.done["preprocess"].data)


def draw(path: Path, width: int = 512, height: int = 512, colour: object = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), colour).save(path)
    return path


@pytest.mark.parametrize(
    ("size", "result", "factor"),
    [
        ((416, 416), (512, 512), 1.2308),
        ((256, 2048), (256, 2048), 1.0),  # as wide as its bucket, 256x1024, which cuts the rest
        ((700, 333), (704, 335), 1.0060),
        ((512, 600), (492, 576), 1.0),
        ((1600, 900), (683, 384), 1.0),
        ((2000, 2000), (512, 512), 1.0),
        ((193, 217), (512, 575), 2.6528),
    ],
)
def test_an_image_is_scaled_to_cover_its_bucket(
    size: tuple[int, int], result: tuple[int, int], factor: float, tmp_path: Path
):
    draw(tmp_path / "in" / "a.png", *size)
    run = pipeline(tmp_path, tmp_path / "in", accept=("too-small",))
    (image,) = prepared(run).images
    assert (image.width_px, image.height_px) == result
    assert image.upscaled_by == pytest.approx(factor, abs=1e-4)
    with Image.open(run.run.images / image.name) as written:
        assert written.size == result
        assert written.mode == "RGB"
        assert not written.info.keys() & {"exif", "icc_profile", "dpi"}


@pytest.mark.parametrize("train", [{}, {"bucket_no_upscale": True}, {"enable_bucket": False}])
def test_the_trainer_finds_nothing_left_to_scale(train: dict[str, bool], tmp_path: Path):
    for index, size in enumerate([(300, 300), (600, 400), (1000, 431), (431, 1000), (1649, 2085), (175, 76)]):
        draw(tmp_path / "in" / f"{index}.png", *size, colour=(index, 0, 0))
    run = pipeline(tmp_path, tmp_path / "in", TrainSection(**train), accept=("too-small",))
    record = prepared(run)
    assert len(record.images) == 6
    rules = BucketRules.of(run.spec)
    for name, place in plan_buckets(
        {image.name: (image.width_px, image.height_px) for image in record.images}, rules
    ).placements.items():
        with Image.open(run.run.images / name) as written:
            assert written.size == place.resized


@pytest.mark.parametrize("how", ["centre", "smart"])
def test_with_crop_an_image_is_its_bucket(how: str, tmp_path: Path):
    for index, size in enumerate([(600, 400), (1000, 431), (256, 2048)]):
        draw(tmp_path / "in" / f"{index}.png", *size, colour=(index, 0, 0))
    run = pipeline(tmp_path, tmp_path / "in", crop=how)
    sizes = {(image.width_px, image.height_px) for image in prepared(run).images}
    assert sizes == {(640, 384), (768, 320), (256, 1024)}
    assert BucketRules.of(run.spec) == BucketRules(512, 256, 1024, 64, no_upscale=False, enable=True)
    assert sizes <= set(list_buckets(512, min_reso=256, max_reso=1024, step=64))


def test_a_large_jpeg_that_is_decoded_in_part_looks_as_if_it_had_been_decoded_whole(tmp_path: Path):
    (tmp_path / "in").mkdir()
    values = np.random.default_rng(0).integers(0, 256, (90, 60, 3), dtype=np.uint8)
    picture = Image.fromarray(values).resize((2000, 3000), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 8  # lies on its side: the decoder's width is the picture's height
    picture.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "in" / "a.jpg", quality=95, exif=exif)
    run = pipeline(tmp_path, tmp_path / "in")
    (image,) = prepared(run).images
    assert (image.width_px, image.height_px) == (427, 640)
    whole = open_as_rgb(tmp_path / "in" / "a.jpg", "#ffffff", 64).resize((427, 640), Image.Resampling.LANCZOS)
    with Image.open(run.run.images / image.name) as written:
        difference = np.abs(np.asarray(written, np.int16) - np.asarray(whole, np.int16))
    assert difference.mean() < 0.5


def test_names_come_from_the_sources_bytes(tmp_path: Path):
    sources = [
        draw(tmp_path / "in" / name, colour=colour) for name, colour in (("x y'\n.png", "red"), ("x y'\n.jpg", "blue"))
    ]
    run = pipeline(tmp_path, tmp_path / "in")
    record = prepared(run)
    assert {image.name for image in record.images} == {f"{sha256_file(path)[:16]}.png" for path in sources}
    assert sorted(path.name for path in run.run.images.iterdir()) == [image.name for image in record.images]


def test_originals_are_never_touched(tmp_path: Path):
    for index, size in enumerate((300, 512, 900)):
        draw(tmp_path / "in" / f"{index}.png", size, size)
    before = digest_files(list_files(tmp_path / "in"), tmp_path / "in")
    prepared(pipeline(tmp_path, tmp_path / "in"))
    assert digest_files(list_files(tmp_path / "in"), tmp_path / "in") == before


def test_copies_and_unusable_images_are_skipped_and_say_so(tmp_path: Path):
    draw(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "b.png").write_bytes((tmp_path / "in" / "a.png").read_bytes())
    for index in range(3):
        draw(tmp_path / "in" / f"c{index}.png", colour=(0, 0, 50 * index))
    (tmp_path / "in" / "d.png").write_text("no image")
    record = prepared(pipeline(tmp_path, tmp_path / "in"))
    assert sorted(image.source for image in record.images) == ["a.png", "c0.png", "c1.png", "c2.png"]
    assert record.skipped.keys() == {"b.png", "d.png"}
    assert record.skipped["b.png"] == "the same bytes as a.png"


def test_png_keeps_every_value_and_jpeg_nearly(tmp_path: Path):
    values = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    picture = Image.fromarray(values).resize((512, 512), Image.Resampling.BICUBIC)
    (tmp_path / "in").mkdir()
    picture.save(tmp_path / "in" / "a.png")
    for kind, tolerance in (("png", 0.0), ("jpeg", 3.0)):
        run = pipeline(tmp_path, tmp_path / "in", format=kind)
        (image,) = prepared(run).images
        assert Path(image.name).suffix == {"png": ".png", "jpeg": ".jpg"}[kind]
        with Image.open(run.run.images / image.name) as written:
            difference = np.abs(np.asarray(written, np.int16) - np.asarray(picture, np.int16))
        assert difference.mean() <= tolerance


def test_transparent_rotated_and_annotated_images_come_out_plain(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x8825] = {1: "N"}
    (tmp_path / "in").mkdir()
    Image.new("RGBA", (600, 520), (0, 0, 0, 0)).save(tmp_path / "in" / "a.png", exif=exif)
    run = pipeline(tmp_path, tmp_path / "in", background="#123456")
    (image,) = prepared(run).images
    with Image.open(run.run.images / image.name) as written:
        assert written.size == (499, 576)
        assert written.getpixel((0, 0)) == (0x12, 0x34, 0x56)
        assert not dict(written.getexif())


def test_captions_of_images_that_stay_are_carried_over_and_are_not_this_stages_output(tmp_path: Path):
    draw(tmp_path / "in" / "a.png")
    gone = draw(tmp_path / "in" / "b.png", colour="blue")
    run = pipeline(tmp_path, tmp_path / "in")
    for image in prepared(run).images:
        (run.run.images / image.name).with_suffix(".txt").write_text(f"edited {image.source}")
    gone.unlink()
    again = pipeline(tmp_path, tmp_path / "in")
    (image,) = prepared(again).images
    assert sorted(path.suffix for path in run.run.images.iterdir()) == [".png", ".txt"]
    assert (run.run.images / image.name).with_suffix(".txt").read_text() == "edited a.png"
    assert list(again.done["preprocess"].outputs) == [f"images/{image.name}"]
    (run.run.images / image.name).with_suffix(".txt").write_text("edited again")
    assert pipeline(tmp_path, tmp_path / "in").execute(STAGES) == 0


def draw_many(folder: Path, count: int) -> None:
    """Images that no perceptual hash takes for one another."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for index in range(count):
        values = random.integers(0, 256, (9, 9, 3), dtype=np.uint8)
        Image.fromarray(values).resize((130, 130), Image.Resampling.BICUBIC).save(folder / f"{index:03d}.png")


SMALL = {"resolution": 128, "holdout_from": 20}


def small_pipeline(tmp_path: Path, **dataset: object) -> Pipeline:
    train = TrainSection(min_bucket_reso=64, max_bucket_reso=256)
    return pipeline(tmp_path, tmp_path / "in", train, **(SMALL | dataset))


def test_some_are_held_out_with_their_near_duplicates_and_no_trainer_sees_them(tmp_path: Path):
    draw_many(tmp_path / "in", 30)
    for index in range(10):  # nearly the same picture twice
        with Image.open(tmp_path / "in" / f"{index:03d}.png") as image:
            image.resize((140, 140), Image.Resampling.BICUBIC).save(tmp_path / "in" / f"{index:03d}-again.png")
    run = small_pipeline(tmp_path)
    record = prepared(run)
    assert (len(record.images), len(record.heldout)) == (36, 4)
    held, kept = ({image.source[:3] for image in part} for part in (record.heldout, record.images))
    assert not held & kept
    assert all((run.run.images / image.name).parent == run.run.heldout for image in record.heldout)
    assert {path.name for path in run.run.images.glob("*.png")} == {image.name for image in record.images}
    verify_holdout(record, run.run.images)


def test_captions_follow_an_image_that_is_held_out_or_no_longer(tmp_path: Path):
    draw_many(tmp_path / "in", 20)
    run = small_pipeline(tmp_path)
    before = prepared(run)
    for image in (*before.images, *before.heldout):
        (run.run.images / image.name).with_suffix(".txt").write_text(f"edited {image.source}")
    for share, held in ((0.0, 0), (0.4, 8)):
        record = prepared(small_pipeline(tmp_path, holdout=share))
        assert len(record.heldout) == held
        for image in (*record.images, *record.heldout):
            assert (run.run.images / image.name).with_suffix(".txt").read_text() == f"edited {image.source}"
        assert len(list(run.run.images.rglob("*.txt"))) == 20


def test_an_image_that_changes_under_way_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = draw(tmp_path / "in" / "a.png")
    run = pipeline(tmp_path, tmp_path / "in")
    run.execute([audit.STAGE])
    choose = preprocess._choose

    def change(audited):
        draw(source, colour="blue")
        return choose(audited)

    monkeypatch.setattr(preprocess, "_choose", change)
    with pytest.raises(InputError, match="changed while the run was at work"):
        run.execute(STAGES)
    assert not run.run.record("preprocess").exists()


def test_the_same_images_give_the_same_bytes(tmp_path: Path):
    for index in range(6):
        draw(tmp_path / "in" / f"{index}.jpg", 300 + index, 400, colour=(index * 40, 10, 10))
    outputs = []
    for name in ("one", "two"):
        run = pipeline(tmp_path / name, tmp_path / "in")
        record = prepared(run)
        assert [image.name for image in record.images] == sorted(image.name for image in record.images)
        outputs.append(run.done["preprocess"].outputs)
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) == 6


@pytest.mark.vendor
@pytest.mark.slow
def test_sd_scripts_scales_no_prepared_image_and_sees_no_held_out_one(sd_scripts: Source, tmp_path: Path):
    sizes = [(300, 300), (600, 400), (1000, 431), (431, 1000), (193, 217), (175, 76), (700, 333), (256, 1300)]
    random = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for index, size in enumerate(sizes):
        values = random.integers(0, 256, (9, 9, 3), dtype=np.uint8)
        Image.fromarray(values).resize(size, Image.Resampling.BICUBIC).save(tmp_path / "in" / f"{index}.png")
    spec = StyleSpec(
        name="mine", trigger="t", base=BaseSection(model="random:sd15"),
        dataset=DatasetSection(
            images=str(tmp_path / "in"), resolution=256, min_images=2, accept=("too-small",), holdout=0.25,
            holdout_from=8,
        ),
        caption=CaptionSection(captioner="trigger-only"),
        train=TrainSection(engine="kohya", mixed_precision="no", min_bucket_reso=128, max_bucket_reso=512),
    )  # fmt: skip
    run = Pipeline(spec, RunPaths(tmp_path / "runs" / "mine" / "one"), silent)
    run.execute((*STAGES, caption.STAGE, configure.STAGE))
    record = Prepared.model_validate(run.done["preprocess"].data)
    answer = ask_sd_scripts(sd_scripts, run.run, ("--tokenizer_cache_dir", str(clip_tokenizer_folder().parent)))
    seen = {Path(image["path"]).name: image for dataset in answer["train"] for image in dataset["images"]}
    assert (len(record.images), len(record.heldout)) == (6, 2)
    assert seen.keys() == {image.name for image in record.images}
    for image in record.images:
        assert seen[image.name]["size"] == seen[image.name]["resized"] == [image.width_px, image.height_px]


@pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data beside the project")
def test_real_art_is_prepared_whole(tmp_path: Path):
    run = pipeline(tmp_path, DATA / "anime_mikabul", format="jpeg")
    record = prepared(run)
    held = len(record.heldout)
    assert len(record.images) + held + len(record.skipped) == 103
    assert 8 <= held <= 11
    plan = plan_buckets(
        {image.name: (image.width_px, image.height_px) for image in record.images}, BucketRules.of(run.spec)
    )
    assert all(plan.placements[image.name].resized == (image.width_px, image.height_px) for image in record.images)
    assert len(list_files(run.run.images)) == len(record.images) + held
    assert len(list_files(run.run.heldout)) == held
    verify_holdout(record, run.run.images)
