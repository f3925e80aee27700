"""The audit of a folder and its stage: verdicts, findings, what stops a run, and that nothing is touched."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from brushset.audit.codes import CODES
from brushset.audit.folder import audit_folder
from brushset.audit.result import AuditResult, read_audit, read_audited_images, write_audit
from brushset.audit.settings import AuditSettings
from brushset.errors import InputError, UsageError
from brushset.files import digest_files, list_files, sha256_file
from brushset.load import load_style
from brushset.log import silent
from brushset.paths import PROJECT, RunPaths
from brushset.pipeline import Pipeline
from brushset.spec import DatasetSection, StyleSpec, TrainSection
from brushset.stages.audit import STAGE

DATA = PROJECT.parent / "shared" / "data"


def draw(path: Path, width: int = 512, height: int = 512, seed: int | None = None) -> Path:
    """Noise in large blocks: a picture of its own for each path, unless a seed is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([*path.name.encode()] if seed is None else seed)
    blocks = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
    blocks.resize((width, height), Image.Resampling.NEAREST).save(path)
    return path


def settings(train: dict[str, object] | None = None, **dataset: object) -> AuditSettings:
    section = DatasetSection(**{"min_images": 1, **dataset})
    return AuditSettings.of(StyleSpec(name="x", trigger="t", dataset=section, train=TrainSection(**(train or {}))))


def look(folder: Path, train: dict[str, object] | None = None, **dataset: object) -> AuditResult:
    return audit_folder(folder, settings(train, **dataset), silent)


def codes(result: AuditResult) -> dict[str, str]:
    return {finding.code: finding.severity for finding in result.audit.findings}


def line_of(result: AuditResult, code: str) -> str:
    (finding,) = [finding for finding in result.audit.findings if finding.code == code]
    return finding.line


def test_each_image_gets_its_verdict_with_the_reason(tmp_path: Path):
    draw(tmp_path / "exact.png", 512, 512)
    draw(tmp_path / "small.png", 416, 416)
    draw(tmp_path / "tiny.png", 60, 60)
    (tmp_path / "text.png").write_text("no image")
    images = {image.path: image for image in look(tmp_path).images}
    assert {path: (image.verdict, image.reason) for path, image in images.items()} == {
        "exact.png": ("ok", ""),
        "small.png": ("needs upscaling", "416×416 px, enlarged 1.23 times to 512×512"),
        "tiny.png": ("unusable", "60×60 px would be enlarged 8.5 times to 512×512"),
        "text.png": ("unusable", "text, not an image"),
    }
    assert images["small.png"].enlarged_by == pytest.approx(512 / 416, abs=1e-3)


def test_whether_an_image_is_large_enough_is_asked_of_its_bucket(tmp_path: Path):
    draw(tmp_path / "long.png", 256, 1024)
    draw(tmp_path / "longer.png", 256, 2048)
    draw(tmp_path / "thin.png", 200, 2048)
    images = {image.path: image for image in look(tmp_path).images}
    assert images["long.png"].verdict == images["longer.png"].verdict == "ok"
    assert images["long.png"].bucket == (256, 1024)
    assert images["long.png"].cut_share == 0
    assert images["longer.png"].findings == {"cropped": "256×2048 px: 256×1024 cuts 50% off"}
    assert images["thin.png"].enlarged_by == 1.28


def test_without_upscaling_buckets_a_far_smaller_image_is_too_small_and_a_tiny_one_has_none(tmp_path: Path):
    draw(tmp_path / "near.png", 416, 416)
    draw(tmp_path / "far.png", 128, 128)
    draw(tmp_path / "tiny.png", 60, 60)
    result = look(tmp_path, {"bucket_no_upscale": True}, max_unusable_share=0.9)
    images = {image.path: image for image in result.images}
    assert images["near.png"].verdict == "ok"
    assert images["near.png"].bucket == (384, 384)
    assert "too-small" in images["far.png"].findings
    assert "below 64 px" in images["tiny.png"].findings["no-bucket"]


def test_a_super_resolution_model_may_enlarge_more(tmp_path: Path):
    draw(tmp_path / "a.png", 150, 150)
    assert look(tmp_path).images[0].verdict == "unusable"
    assert look(tmp_path, upscaler="model.safetensors").images[0].verdict == "needs upscaling"
    assert "max_upscale_model = 3" in line_of(look(tmp_path, upscaler="m.pth", max_upscale_model=3.0), "too-small")


def test_the_summary_counts_what_is_there(tmp_path: Path):
    draw(tmp_path / "a.png", 512, 512)
    draw(tmp_path / "b.jpg", 400, 400)
    draw(tmp_path / "sub" / "c.png", 1000, 2000)
    (tmp_path / "a.txt").write_text("a caption")
    (tmp_path / "ATTRIBUTION.txt").write_text("no caption")
    (tmp_path / "bad.gif").write_bytes(b"GIF89a")
    audit = look(tmp_path, min_images=3).audit
    assert (audit.found, audit.ok, audit.needs_upscaling, audit.unusable, audit.different) == (4, 2, 1, 1, 3)
    assert audit.formats == {"JPEG": 1, "PNG": 2, "none": 1}
    assert (audit.min_side_px, audit.median_side_px, audit.max_side_px) == (400, 512, 1000)
    assert audit.with_sidecar == 1
    assert audit.buckets == {"320x704": 1, "512x512": 2}
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
        draw(tmp_path / f"good{index}.png")
    for index in range(small):
        draw(tmp_path / f"small{index}.png", 300, 300)
    for index in range(broken):
        (tmp_path / f"broken{index}.png").write_text("x")
    assert look(tmp_path, min_images=4).audit.verdict == verdict


def test_byte_equal_copies_count_once_and_share_a_group(tmp_path: Path):
    for name in ("a.png", "b.png", "c.png"):
        draw(tmp_path / name, seed=1)
    result = look(tmp_path, min_images=2)
    assert result.audit.verdict == "too few"
    assert (result.audit.different, result.audit.exact_duplicates, result.audit.near_duplicates) == (1, 2, 0)
    assert "2 of 3 are byte-equal copies" in line_of(result, "exact-duplicates")
    assert [image.group for image in result.images] == [1, 1, 1]
    assert [(group.kind, group.images) for group in result.groups] == [("exact", ("a.png", "b.png", "c.png"))]


def test_a_set_that_repeats_itself_is_told_so_and_keeps_all_its_images(tmp_path: Path):
    for index in range(6):
        draw(tmp_path / f"{index}.png", 600, 600)
    copy = Image.open(tmp_path / "0.png")
    copy.resize((512, 512)).save(tmp_path / "copy.jpg", quality=80)
    result = look(tmp_path)
    assert result.audit.verdict == "duplicates"
    assert codes(result)["near-duplicates"] == "warning"
    assert result.groups[0].images == ("0.png", "copy.jpg")
    assert "0.png = copy.jpg" in line_of(result, "near-duplicates")
    assert result.audit.ok == 7
    quiet = look(tmp_path, max_duplicate_share=0.5)
    assert (quiet.audit.verdict, codes(quiet)["near-duplicates"]) == ("ok", "note")
    assert look(tmp_path, accept="near-duplicates").audit.verdict == "ok"


def test_every_reason_is_one_printable_line_with_a_fix(tmp_path: Path):
    for index in range(8):
        (tmp_path / f"brok\nen{index}.png").write_text("x")
    draw(tmp_path / "tiny\n.png", 20, 20)
    draw(tmp_path / "small.png", 300, 300)
    draw(tmp_path / "copy.png", 300, 300, seed=1)
    draw(tmp_path / "copy2.png", 300, 300, seed=1)
    (tmp_path / "copy.txt").write_text("a caption")
    Image.open(draw(tmp_path / "flat.png")).convert("CMYK").save(tmp_path / "print.jpg")
    (tmp_path / "link\n.png").symlink_to("/nowhere.png")
    result = look(tmp_path, min_images=80)
    assert len(result.audit.reasons) == len(result.audit.findings) >= 8
    assert all(reason.isprintable() and "; fix: " in reason for reason in result.audit.reasons)
    assert "and 3 more" in line_of(result, "unreadable")
    assert {"captions-missing", "left-out", "guessed"} <= codes(result).keys()


def test_the_audit_only_reads(tmp_path: Path):
    draw(tmp_path / "images" / "a.png")
    (tmp_path / "images" / "b.png").write_text("x")
    before = digest_files(list_files(tmp_path), tmp_path)
    look(tmp_path / "images")
    assert digest_files(list_files(tmp_path), tmp_path) == before


def test_a_file_without_permission_is_reported_and_not_fatal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    draw(tmp_path / "a.png")
    draw(tmp_path / "b.png")
    whole = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "b.png":
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    images = look(tmp_path).images
    assert [image.sha256 == "unreadable" for image in images] == [False, True]
    assert (images[1].verdict, images[1].reason) == ("unusable", "cannot be read: Permission denied")


def test_progress_is_emitted_image_by_image(tmp_path: Path):
    heard: list[object] = []
    for name in ("a.png", "b.png"):
        draw(tmp_path / name)
    audit_folder(tmp_path, settings(), lambda event, **fields: heard.append((event, fields["done"], fields["total"])))
    assert heard == [("progress", 1, 2), ("progress", 2, 2)]


def save_as(folder: Path, image: Image.Image, **options: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / ("a.jpg" if options else "a.png"), **options)
    return folder


def picture(tmp_path: Path) -> Image.Image:
    """Has a dark half, so that it has a shape of its own; 512 square."""
    return Image.open(draw(tmp_path / "source.png", seed=5)).convert("RGB")


def test_every_threshold_acts(tmp_path: Path):
    source = picture(tmp_path)
    blurred = save_as(tmp_path / "blurred", source.filter(ImageFilter.GaussianBlur(40)))
    pale = save_as(tmp_path / "pale", source.point(lambda value: 128 + value // 8))
    dark = save_as(tmp_path / "dark", source.point(lambda value: value // 16))
    framed = Image.new("RGB", (700, 512), "black")
    framed.paste(source, (94, 0))
    letterbox = save_as(tmp_path / "framed", framed)
    blocky = save_as(tmp_path / "blocky", source, quality=30)
    wide = save_as(tmp_path / "wide", source.resize((2048, 256)))
    for folder, code, least in (
        (blurred, "blurry", {"min_sharpness": 0.0}),
        (pale, "washed-out", {"min_contrast": 0.0}),
        (dark, "dark", {"min_mean_luma": 0.0}),
        (letterbox, "border", {"max_frame_share": 0.9}),
        (blocky, "jpeg-artefacts", {"min_jpeg_quality": 1}),
        (wide, "cropped", {"max_cut_share": 0.9}),
    ):
        assert codes(look(folder))[code] == "warning"
        assert codes(look(folder, accept=code))[code] == "note"
        assert code not in codes(look(folder, **least))


def test_an_image_of_one_colour_is_named_and_has_no_hash(tmp_path: Path):
    save_as(tmp_path, Image.new("RGB", (600, 600), "white"))
    result = look(tmp_path)
    assert codes(result) == {"uniform": "warning"}
    assert result.images[0].phash == ""


def test_what_differs_from_the_rest_is_told_with_the_number_that_differs(tmp_path: Path):
    for index in range(24):
        draw(tmp_path / f"{index:02}.png")
    draw(tmp_path / "large.png", 4000, 4000)
    draw(tmp_path / "wide.png", 1400, 500)
    Image.open(draw(tmp_path / "soft.png")).filter(ImageFilter.GaussianBlur(12)).save(tmp_path / "soft.png")
    texts = {image.path: image.findings["outlier"] for image in look(tmp_path).images if "outlier" in image.findings}
    assert texts.keys() == {"large.png", "wide.png", "soft.png"}
    assert texts["large.png"] == "7.8 times the set's usual size"
    assert texts["wide.png"] == "2.80 wide to 1 high; the set's median is 1.00"
    assert texts["soft.png"].startswith("sharpness ")


def test_what_is_accepted_no_longer_makes_a_set_unusable(tmp_path: Path):
    for index in range(3):
        draw(tmp_path / f"{index}.png", 100, 100)
    (tmp_path / "bad.png").write_text("x")
    refused = look(tmp_path)
    assert refused.audit.verdict == "unusable"
    assert codes(refused)["too-small"] == "stop"
    assert '--set \'dataset.accept=["too-small", "unreadable"]\'' in line_of(refused, "too-small")
    taken = look(tmp_path, accept="too-small")
    assert (taken.audit.verdict, taken.audit.needs_upscaling, taken.audit.unusable) == ("needs upscaling", 3, 1)
    assert codes(taken)["too-small"] == "note"
    assert codes(taken)["unreadable"] == "warning"


def test_unreadable_files_that_are_accepted_do_not_count_against_the_set(tmp_path: Path):
    draw(tmp_path / "a.png")
    for index in range(3):
        (tmp_path / f"bad{index}.png").write_text("x")
    refused = look(tmp_path)
    assert refused.audit.verdict == "unusable"
    assert line_of(refused, "unreadable").endswith("to go on without that: --set dataset.accept=unreadable")
    assert look(tmp_path, accept="unreadable").audit.verdict == "ok"
    assert look(tmp_path, max_unusable_share=0.8).audit.verdict == "ok"


def test_where_nothing_is_left_accepting_is_not_offered_and_does_not_help(tmp_path: Path):
    (tmp_path / "a.png").write_text("x")
    assert "accept" not in "".join(look(tmp_path).audit.reasons)
    assert look(tmp_path, accept="unreadable").audit.verdict == "unusable"


def test_an_unknown_finding_in_accept_is_refused_with_all_that_there_are(tmp_path: Path):
    with pytest.raises(UsageError, match='no finding "to-small"; did you mean "too-small"') as caught:
        look(tmp_path, accept=("to-small", "nonsense"))
    assert all(code in str(caught.value) for code in CODES)
    assert 'no finding "nonsense"' in str(caught.value)


def test_the_option_that_an_unusable_set_offers_is_one_that_the_command_line_takes(tmp_path: Path):
    style = tmp_path / "mine.toml"
    style.write_text('name = "mine"\ntrigger = "t"\n')
    for given, accept in (
        ("dataset.accept=too-small", ("too-small",)),
        ('dataset.accept=["too-small", "unreadable"]', ("too-small", "unreadable")),
    ):
        assert load_style(style, settings=[given]).dataset.accept == accept


def make_set(folder: Path, sources: list[Image.Image], count: int, size: tuple[int, int], spread: int) -> Path:
    """`count` different pictures, cut from the sources, of about `size`."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(count):
        source = sources[index % len(sources)]
        width, height = (side + int(rng.integers(-spread, spread + 1)) for side in size)
        edge = int(min(source.size) * rng.uniform(0.6, 1.0))
        left, top = (int(rng.integers(0, side - edge + 1)) for side in source.size)
        cut = source.crop((left, top, left + edge, top + edge)).resize((width, height), Image.Resampling.BICUBIC)
        cut.save(folder / f"{index:03}.jpg", quality=90)
    return folder


def demo_sources() -> list[Image.Image]:
    from skimage import data

    return [Image.fromarray(image) for image in (data.astronaut(), data.chelsea(), data.coffee(), data.rocket())]


def potter_sources() -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in sorted((DATA / "watercolor_potter").glob("*.jpg"))[:40]]


@pytest.mark.parametrize("origin", ["demo", "real"])
def test_the_three_sets_of_the_users_own_table_come_out_as_he_judged_them(tmp_path: Path, origin: str):
    if origin == "real" and not DATA.is_dir():
        pytest.skip("no ../shared/data beside the project")
    sources = demo_sources() if origin == "demo" else potter_sources()
    tiny = make_set(tmp_path / "tiny", sources, 183, (60, 60), 3)
    small = make_set(tmp_path / "small", sources, 170, (416, 416), 0)
    large = make_set(tmp_path / "large", sources, 63, (2000, 2000), 9)
    usual = AuditSettings.of(StyleSpec(name="x", trigger="t"))

    first = audit_folder(tiny, usual, silent).audit
    assert (first.verdict, first.unusable) == ("unusable", 183)
    assert first.reasons[0].startswith("183 of 183 are too small: ")
    assert "fix: find larger originals, or remove them" in first.reasons[0]
    assert first.reasons[0].endswith("--set dataset.accept=too-small")

    second = audit_folder(small, usual, silent).audit
    assert (second.verdict, second.needs_upscaling, second.unusable) == ("needs upscaling", 170, 0)
    assert "enlarged 1.23 times to 512×512" in next(line for line in second.reasons if "upscaled" in line)

    third = audit_folder(large, usual, silent).audit
    assert (third.verdict, third.ok, third.unusable) == ("too few", 63, 0)
    assert any(line.startswith("63 different usable images; [dataset] min_images = 80") for line in third.reasons)


def test_what_is_written_is_read_back_and_holds_a_line_per_image(tmp_path: Path):
    draw(tmp_path / "in" / "a.png")
    draw(tmp_path / "in" / "ü\n.png", seed=2)
    result = look(tmp_path / "in")
    write_audit(tmp_path, result)
    again = read_audit(tmp_path)
    assert (again.audit, again.images, again.groups) == (result.audit, result.images, result.groups)
    assert read_audited_images(tmp_path) == result.images
    text = (tmp_path / "audit.json").read_text(encoding="utf-8")
    assert list(json.loads(text)) == ["audit", "groups", "images"]
    assert sum(line.startswith('{"path"') for line in text.splitlines()) == 2


@pytest.mark.parametrize("content", [None, "{}", "nonsense"])
def test_an_audit_that_cannot_be_read_says_what_to_do(tmp_path: Path, content: str | None):
    if content is not None:
        (tmp_path / "audit.json").write_text(content)
    with pytest.raises(UsageError, match=r"audit\.json: .*; fix: run the audit again"):
        read_audit(tmp_path)


def test_every_readable_image_of_a_small_set_has_a_thumbnail(tmp_path: Path):
    draw(tmp_path / "a.png", 1200, 600)
    (tmp_path / "b.png").write_text("x")
    ((path, content),) = look(tmp_path).thumbnails.items()
    (tmp_path / "thumbnail").write_bytes(content)
    with Image.open(tmp_path / "thumbnail") as image:
        assert (path, image.format, image.size) == ("a.png", "JPEG", (160, 80))


def test_of_a_large_set_only_what_findings_concern_has_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("brushset.audit.folder.SHOWN_IMAGES", 3)
    for index in range(4):
        draw(tmp_path / f"good{index}.png")
        draw(tmp_path / f"small{index}.png", 300, 300)
    draw(tmp_path / "tiny.png", 30, 30)
    thumbnails = look(tmp_path).thumbnails
    assert list(thumbnails) == ["tiny.png", "small0.png", "small1.png"]
    assert all(thumbnails.values())


def pipeline(tmp_path: Path, images: Path, **dataset: object) -> Pipeline:
    spec = StyleSpec(name="mine", trigger="t", dataset=DatasetSection(images=str(images), **dataset))
    return Pipeline(spec, RunPaths(tmp_path / "runs" / "mine" / "one"), silent)


def test_the_stage_writes_the_audit_and_follows_the_folder(tmp_path: Path):
    folder = tmp_path / "images"
    draw(folder / "a.png")
    run = pipeline(tmp_path, folder, min_images=1)
    assert run.execute([STAGE]) == 1
    (image,) = read_audited_images(run.run.audit)
    assert (image.path, image.verdict, image.bucket) == ("a.png", "ok", (512, 512))
    assert pipeline(tmp_path, folder, min_images=1).execute([STAGE]) == 0
    draw(folder / "b.png")
    assert pipeline(tmp_path, folder, min_images=1).execute([STAGE]) == 1


def test_a_changed_bucket_setting_repeats_the_audit(tmp_path: Path):
    draw(tmp_path / "images" / "a.png", 256, 1024)
    run = pipeline(tmp_path, tmp_path / "images")
    run.execute([STAGE])
    changed = run.spec.model_copy(update={"train": TrainSection(min_bucket_reso=512)})
    again = Pipeline(changed, run.run, silent)
    assert again.execute([STAGE]) == 1
    assert read_audited_images(run.run.audit)[0].bucket == (512, 512)


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
    with pytest.raises(InputError, match="3 of 3 images cannot" if broken else "no image in it") as caught:
        run.execute([STAGE])
    assert caught.value.exit_code == 3
    assert not run.run.record("audit").exists()
    assert {path.relative_to(run.run.logs).as_posix() for path in list_files(run.run.root)} == {
        "audit/audit.json",
        "audit/index.html",
    }
    assert not broken or str(run.run.logs / "audit" / "index.html") in str(caught.value), "where it is shown"


def test_an_unusable_set_goes_on_where_the_finding_is_accepted(tmp_path: Path):
    draw(tmp_path / "images" / "a.png", 60, 60)
    with pytest.raises(InputError, match=r"--set dataset\.accept=too-small"):
        pipeline(tmp_path, tmp_path / "images").execute([STAGE])
    run = pipeline(tmp_path, tmp_path / "images", accept=("too-small",))
    assert run.execute([STAGE]) == 1
    assert read_audited_images(run.run.audit)[0].verdict == "needs upscaling"
    (accepted,) = [item for item in read_audit(run.run.audit).audit.findings if item.code == "too-small"]
    assert accepted.accepted


def test_the_audit_needs_no_torch_and_a_measuring_process_no_spec():
    code = "import sys; import {}; print('torch' in sys.modules, 'cv2' in sys.modules, 'brushset.spec' in sys.modules)"
    for module, has_spec in (("brushset.stages.audit", "True"), ("brushset.audit.pool", "False")):
        result = subprocess.run(
            [sys.executable, "-c", code.format(module)], cwd=PROJECT, capture_output=True, text=True, check=True
        )
        assert result.stdout.split() == ["False", "False", has_spec]


@pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data beside the project")
@pytest.mark.parametrize(
    ("name", "found", "verdict", "warnings"),
    [
        ("cartoon_gophers", 148, "ok", set()),
        ("watercolor_potter", 173, "ok", set()),
        ("anime_mikabul", 103, "ok", {"uniform", "cropped"}),
        ("painted_mikabul_control", 49, "too few", {"too-few"}),
        ("photos_dreambooth_control", 60, "too few", {"too-few", "border"}),
        ("kohya_tomls", 0, "unusable", set()),
    ],
)
def test_the_real_sets_are_judged_without_false_alarm(name: str, found: int, verdict: str, warnings: set[str]):
    result = audit_folder(DATA / name, AuditSettings.of(StyleSpec(name="x", trigger="t")), silent)
    assert (result.audit.found, len(result.images), result.audit.verdict) == (found, found, verdict)
    assert {code for code, severity in codes(result).items() if severity != "note"} == warnings


@pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data beside the project")
def test_odd_files_are_found_with_what_is_odd_about_them():
    result = audit_folder(DATA / "odd_formats", AuditSettings.of(StyleSpec(name="x", trigger="t")), silent)
    assert result.audit.verdict == "unusable"
    assert result.audit.found == 63
    assert {"unreadable", "too-small", "uniform", "converted", "guessed", "near-duplicates"} <= codes(result).keys()


def test_a_file_that_lay_untouched_is_hashed_once_and_a_changed_one_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from brushset import images

    path = draw(tmp_path / "a.png")
    read: list[Path] = []

    def count(file: Path) -> str:
        read.append(file)
        return sha256_file(file)

    monkeypatch.setattr(images, "sha256_file", count)
    monkeypatch.setattr(images, "_RACY_S", 0.0)
    first = images.digest_or_unreadable(path)
    assert images.digest_or_unreadable(path) == first == sha256_file(path)
    assert len(read) == 1
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert images.digest_or_unreadable(path) == sha256_file(path) != first
    monkeypatch.setattr(images, "_RACY_S", 3600.0)
    path.write_bytes(b"y")
    assert images.digest_or_unreadable(path) == images.digest_or_unreadable(path) == sha256_file(path)
    assert len(read) == 4
