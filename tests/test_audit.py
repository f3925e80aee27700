"""The audit: what it says of an image, of a set, and that it touches nothing."""

from __future__ import annotations

import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image

from brushset.errors import InputError
from brushset.files import digest_files, list_files, read_json
from brushset.log import silent
from brushset.paths import PROJECT, RunPaths
from brushset.pipeline import Pipeline
from brushset.spec import DatasetSection, StyleSpec
from brushset.stages.audit import STAGE, audit_folder

DATA = PROJECT.parent / "shared" / "data"
FEW = DatasetSection(min_images=2)


def draw(path: Path, width: int = 512, height: int = 512, colour: object = None) -> Path:
    """An image of its own bytes for each path, unless a colour is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), colour or tuple(zlib.crc32(path.name.encode()).to_bytes(4, "big")[:3])).save(path)
    return path


def test_each_image_gets_its_verdict_with_the_reason(tmp_path: Path):
    draw(tmp_path / "exact.png", 512, 700)
    draw(tmp_path / "small.png", 600, 416)
    draw(tmp_path / "least.png", 256, 900)
    draw(tmp_path / "tiny.png", 255, 900)
    (tmp_path / "text.png").write_text("no image")
    _, images = audit_folder(tmp_path, FEW, silent)
    assert {image.path: image.verdict for image in images} == {
        "exact.png": "ok",
        "small.png": "needs upscaling",
        "least.png": "needs upscaling",
        "tiny.png": "unusable",
        "text.png": "unusable",
    }
    reasons = {image.path: image.reason for image in images}
    assert reasons["small.png"] == "shorter side 416 px is below [dataset] resolution = 512"
    assert reasons["tiny.png"] == "shorter side 255 px is below 256: [dataset] max_upscale = 2"
    assert reasons["text.png"].startswith("no PNG")
    assert reasons["exact.png"] == ""


def test_sizes_are_as_displayed_and_formats_by_content(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (800, 600)).save(tmp_path / "x.png", "JPEG", exif=exif)
    _, (image,) = audit_folder(tmp_path, FEW, silent)
    assert (image.width_px, image.height_px, image.format) == (600, 800, "JPEG")


def test_the_summary_counts_what_is_there(tmp_path: Path):
    draw(tmp_path / "a.png", 512, 512)
    draw(tmp_path / "b.jpg", 600, 400)
    draw(tmp_path / "sub" / "c.png", 1000, 2000)
    (tmp_path / "a.txt").write_text("a caption")
    (tmp_path / "ATTRIBUTION.txt").write_text("no caption")
    (tmp_path / "bad.gif").write_bytes(b"GIF89a")
    audit, _ = audit_folder(tmp_path, DatasetSection(min_images=3), silent)
    assert (audit.found, audit.ok, audit.needs_upscaling, audit.unusable) == (4, 2, 1, 1)
    assert audit.formats == {"JPEG": 1, "PNG": 2, "none": 1}
    assert (audit.min_side_px, audit.median_side_px, audit.max_side_px) == (400, 512, 1000)
    assert audit.with_sidecar == 1
    assert audit.folder == str(tmp_path)
    assert audit.verdict == "ok"


@pytest.mark.parametrize(
    ("good", "small", "broken", "verdict"),
    [
        (4, 0, 0, "ok"),
        (3, 0, 3, "too few"),
        (4, 0, 4, "ok"),
        (4, 0, 5, "unusable"),
        (0, 0, 2, "unusable"),
        (0, 0, 0, "unusable"),
        (2, 2, 0, "ok"),
        (2, 3, 0, "needs upscaling"),
        (1, 2, 0, "too few"),
    ],
)
def test_the_verdict_of_a_set_follows_the_thresholds(tmp_path: Path, good: int, small: int, broken: int, verdict: str):
    for index in range(good):
        draw(tmp_path / f"good{index}.png", colour=(index, 0, 0))
    for index in range(small):
        draw(tmp_path / f"small{index}.png", 300, 300, colour=(index, 0, 0))
    for index in range(broken):
        (tmp_path / f"broken{index}.png").write_text("x")
    audit, _ = audit_folder(tmp_path, DatasetSection(min_images=4), silent)
    assert audit.verdict == verdict


def test_byte_equal_copies_count_once(tmp_path: Path):
    for name in ("a.png", "b.png", "c.png"):
        draw(tmp_path / name, colour="red")
    audit, _ = audit_folder(tmp_path, FEW, silent)
    assert audit.verdict == "too few"
    assert any(reason.startswith("2 byte-equal copies") for reason in audit.reasons)


def test_every_reason_is_one_printable_line_with_a_fix(tmp_path: Path):
    for index in range(8):
        (tmp_path / f"brok\nen{index}.png").write_text("x")
    draw(tmp_path / "tiny\n.png", 20, 20)
    draw(tmp_path / "small.png", 300, 300)
    draw(tmp_path / "copy.png", 300, 300, colour="red")
    draw(tmp_path / "copy2.png", 300, 300, colour="red")
    Image.new("CMYK", (600, 600)).save(tmp_path / "print.jpg")
    audit, _ = audit_folder(tmp_path, DatasetSection(), silent)
    assert len(audit.reasons) == 6
    assert all(reason.isprintable() and "; fix: " in reason for reason in audit.reasons)
    assert "and 3 more" in audit.reasons[0]


def test_the_audit_only_reads(tmp_path: Path):
    draw(tmp_path / "images" / "a.png")
    (tmp_path / "images" / "b.png").write_text("x")
    before = digest_files(list_files(tmp_path), tmp_path)
    audit_folder(tmp_path / "images", FEW, silent)
    assert digest_files(list_files(tmp_path), tmp_path) == before


def test_a_file_without_permission_is_reported_and_not_fatal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    draw(tmp_path / "a.png")
    draw(tmp_path / "b.png")
    whole, decode = Path.open, Image.open

    def refuse(path: Path, *rest: object, **named: object):
        if path.name == "b.png":
            raise PermissionError(13, "Permission denied", str(path))
        return (decode if "formats" in named else whole)(path, *rest, **named)

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Image, "open", refuse)
    _, images = audit_folder(tmp_path, FEW, silent)
    assert [image.sha256 == "unreadable" for image in images] == [False, True]
    assert images[1].verdict == "unusable"


def test_progress_is_emitted_image_by_image(tmp_path: Path):
    heard: list[object] = []
    for name in ("a.png", "b.png"):
        draw(tmp_path / name)
    audit_folder(tmp_path, FEW, lambda event, **fields: heard.append((event, fields["done"], fields["total"])))
    assert heard == [("progress", 1, 2), ("progress", 2, 2)]


def pipeline(tmp_path: Path, images: Path, **dataset: object) -> Pipeline:
    spec = StyleSpec(name="mine", trigger="t", dataset=DatasetSection(images=str(images), **dataset))
    return Pipeline(spec, RunPaths(tmp_path / "runs" / "mine" / "one"), silent)


def test_the_stage_writes_a_line_per_image_and_follows_the_folder(tmp_path: Path):
    folder = tmp_path / "images"
    draw(folder / "a.png")
    run = pipeline(tmp_path, folder, min_images=1)
    assert run.execute([STAGE]) == 1
    (line,) = read_json(run.run.audit / "images.json")
    assert (line["path"], line["verdict"]) == ("a.png", "ok")
    assert pipeline(tmp_path, folder, min_images=1).execute([STAGE]) == 0
    draw(folder / "b.png")
    assert pipeline(tmp_path, folder, min_images=1).execute([STAGE]) == 1


def test_a_changed_caption_does_not_repeat_the_audit_and_a_new_one_does(tmp_path: Path):
    folder = tmp_path / "images"
    draw(folder / "a.png")
    pipeline(tmp_path, folder).execute([STAGE])
    (folder / "a.txt").write_text("a cat")
    assert pipeline(tmp_path, folder).execute([STAGE]) == 1
    (folder / "a.txt").write_text("a dog")
    assert pipeline(tmp_path, folder).execute([STAGE]) == 0


@pytest.mark.parametrize("broken", [0, 3])
def test_an_unusable_set_stops_the_run_with_its_reasons(tmp_path: Path, broken: int):
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(broken):
        (folder / f"{index}.png").write_text("x")
    run = pipeline(tmp_path, folder)
    with pytest.raises(InputError, match="3 of 3 images cannot" if broken else "no image in it"):
        run.execute([STAGE])
    assert not run.run.record("audit").exists()
    assert list_files(run.run.root) == []


def test_the_audit_needs_no_torch():
    code = "import sys; import brushset.stages.audit; print('torch' in sys.modules, 'cv2' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]


@pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data beside the project")
@pytest.mark.parametrize(
    ("name", "found", "verdict"),
    [("anime_mikabul", 103, "ok"), ("odd_formats", 63, "unusable"), ("kohya_tomls", 0, "unusable")],
)
def test_the_real_sets_are_judged(name: str, found: int, verdict: str):
    audit, images = audit_folder(DATA / name, DatasetSection(), silent)
    assert (audit.found, len(images), audit.verdict) == (found, found, verdict)
