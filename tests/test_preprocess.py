"""Preprocess: every image becomes a file of ours, of one kind, named by its content; originals stay as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from brushset.errors import InputError
from brushset.files import digest_files, list_files, sha256_file
from brushset.log import silent
from brushset.paths import PROJECT, RunPaths
from brushset.pipeline import Pipeline
from brushset.records import Prepared
from brushset.spec import DatasetSection, StyleSpec
from brushset.stages import audit, preprocess

DATA = PROJECT.parent / "shared" / "data"
STAGES = (audit.STAGE, preprocess.STAGE)


def pipeline(tmp_path: Path, folder: Path, **dataset: object) -> Pipeline:
    spec = StyleSpec(name="mine", trigger="t", dataset=DatasetSection(images=str(folder), **dataset))
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
        ((256, 2048), (512, 4096), 2.0),
        ((700, 333), (1076, 512), 1.5375),
        ((512, 600), (512, 600), 1.0),
        ((1600, 900), (1600, 900), 1.0),
    ],
)
def test_the_shorter_side_is_brought_up_to_the_training_size_and_never_down(
    size: tuple[int, int], result: tuple[int, int], factor: float, tmp_path: Path
):
    draw(tmp_path / "in" / "a.png", *size)
    run = pipeline(tmp_path, tmp_path / "in")
    (image,) = prepared(run).images
    assert (image.width_px, image.height_px) == result
    assert image.upscaled_by == pytest.approx(factor, abs=1e-4)
    with Image.open(run.run.images / image.name) as written:
        assert written.size == result
        assert written.mode == "RGB"


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
    draw(tmp_path / "in" / "c.png", colour="blue")
    (tmp_path / "in" / "d.png").write_text("no image")
    record = prepared(pipeline(tmp_path, tmp_path / "in"))
    assert [image.source for image in sorted(record.images, key=lambda image: image.source)] == ["a.png", "c.png"]
    assert record.skipped["b.png"] == "the same bytes as a.png"
    assert record.skipped["d.png"].startswith("no PNG")


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
        assert written.size == (520, 600)
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


@pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data beside the project")
def test_real_art_is_prepared_whole(tmp_path: Path):
    run = pipeline(tmp_path, DATA / "anime_mikabul", format="jpeg")
    record = prepared(run)
    assert len(record.images) + len(record.skipped) == 103
    assert min(min(image.width_px, image.height_px) for image in record.images) >= 512
    assert len(list_files(run.run.images)) == len(record.images)
