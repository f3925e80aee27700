"""The audit page: the verdict first, each finding with its pictures, nothing from outside, nobody's markup."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image, ImageFilter

from brushset.audit.folder import audit_folder
from brushset.audit.result import AuditResult
from brushset.audit.settings import AuditSettings
from brushset.log import silent
from brushset.page.audit import bucket_bars, heading, render_audit, shape_bars, side_bars, write_audit_page
from brushset.paths import PROJECT, RunPaths
from brushset.pipeline import Pipeline
from brushset.records import DuplicateGroup
from brushset.spec import DatasetSection, StyleSpec
from brushset.stages.audit import STAGE

DATA = PROJECT.parent / "shared" / "data"
NASTY = "<script>alert(1)</script><img src=x onerror=alert(1)> & \"q\" 'n' {{ 7 * 7 }}\n\u202e".replace("/", "∕")
THUMBNAIL = re.compile(
    r"^\.(t\d+) \{ background-image: url\(\"data:image/jpeg;base64,[A-Za-z0-9+/=]+\"\); \}$", re.MULTILINE
)


def settings(**dataset: object) -> AuditSettings:
    return AuditSettings.of(StyleSpec(name="mine", trigger="t", dataset=DatasetSection(**dataset)))


def noise(path: Path, side: int = 512, sigma: float = 60) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    small = Image.effect_noise((side // 8, side // 8), sigma).convert("RGB")
    small.resize((side, side)).save(path)
    return path


def audited(folder: Path, **dataset: object) -> tuple[AuditResult, str]:
    asked = settings(**dataset)
    result = audit_folder(folder, asked, silent)
    return result, render_audit("my set", result, asked)


class Parsed(HTMLParser):
    """Tags, attribute values and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Good ones, a broken one, a small one, near-duplicates, a copy, a pipe's worth of oddities."""
    folder = tmp_path / "set"
    for index in range(6):
        noise(folder / f"good{index}.png")
    with Image.open(folder / "good0.png") as image:
        image.save(folder / "near.jpg", quality=70)
        image.filter(ImageFilter.GaussianBlur(1)).save(folder / "nearer.png")
    (folder / "copy.png").write_bytes((folder / "good1.png").read_bytes())
    noise(folder / "tiny.png", 64)
    (folder / "broken.png").write_text("no image")
    (folder / "out.png").symlink_to("/etc/hostname")
    return folder


def test_the_verdict_stands_first_with_its_reason_and_fix(mixed: Path):
    _, page = audited(mixed, min_images=80)
    text = Parsed(page).text
    assert text.index("they are few") < text.index("What was found")
    assert "different usable images" in text[: text.index("What was found")]
    assert "add images" in text[: text.index("What was found")]
    assert text.index("different usable images") < text.index("cannot be read"), "what the verdict rests on comes first"


@pytest.mark.parametrize(("verdict", "tone"), [("unusable", "stop"), ("ok", "better"), ("too few", "plain")])
def test_each_verdict_has_its_own_look(verdict: str, tone: str, mixed: Path):
    result, _ = audited(mixed)
    result = replace(result, audit=result.audit.model_copy(update={"verdict": verdict}))
    assert f'<div class="verdict {tone}"' in render_audit("x", result, settings())


def test_what_cannot_be_used_is_shown_with_its_reason_and_fix(mixed: Path):
    _, page = audited(mixed)
    text = Parsed(page).text
    assert "broken.png text, not an image; fix: remove it" in text
    assert "out.png: a link out of the folder; fix: copy the file itself into the folder" in text
    assert re.search(r"tiny\.png.{0,40}64×64 px", text, re.DOTALL)


def test_near_duplicates_stand_side_by_side_with_their_distance(mixed: Path):
    result, page = audited(mixed)
    near = next(group for group in result.groups if group.kind == "near")
    (row,) = [row for row in page.split('<div class="side')[1:] if near.images[0] in row.split("</div>")[0]]
    row = row.split("</div>")[0]
    assert all(name in row for name in near.images)
    distances = [int(text) for text in re.findall(r"(\d+) of 64 bits differ", row)]
    assert len(distances) == len(near.images) - 1
    assert max(distances) == near.widest
    assert "the same bytes" in page


def test_a_picture_is_in_the_page_once_however_many_findings_show_it(mixed: Path):
    result, page = audited(mixed)
    classes = THUMBNAIL.findall(page)
    assert len(classes) == len(set(classes)) == len(result.thumbnails)
    assert page.count("data:image/jpeg") == len(result.thumbnails)
    used = set(re.findall(r'class="thumb (t\d+)"', page))
    assert used <= set(classes)
    assert len(used) == len(result.thumbnails), "every picture is shown somewhere"


def test_the_page_loads_nothing_and_runs_nothing(mixed: Path):
    parsed = Parsed(audited(mixed)[1])
    assert not {"script", "link", "iframe", "object", "embed", "img", "form"} & set(parsed.tags)
    assert not [name for name, _ in parsed.attributes if name == "src" or name.startswith("on")]
    assert {value for name, value in parsed.attributes if name == "href"} == {"#alike"}


def test_names_of_strangers_are_text_and_shown_on_one_line(tmp_path: Path):
    folder = tmp_path / "<b>set</b>"
    for name in (f"{NASTY}.png", f"two {NASTY}.png"):
        noise(folder / name)
    (folder / f"broken {NASTY}.png").write_text("x")
    (folder / f"link {NASTY}.png").symlink_to("/etc/hostname")
    page = render_audit("<b>set</b>", audit_folder(folder, settings(), silent), settings())
    parsed = Parsed(page)
    assert not {"script", "img", "b"} & set(parsed.tags)
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    assert parsed.text.count("<script>alert(1)<∕script>") >= 4
    assert "{{ 7 * 7 }}" in parsed.text
    assert r"\n\u202e.png" in parsed.text
    assert "\u202e" not in page


def test_an_empty_folder_has_a_page_that_says_so(tmp_path: Path):
    result, page = audited(tmp_path)
    assert result.audit.verdict == "unusable"
    assert "Not to be trained on" in page
    assert "no image in it" in page


def test_an_accepted_finding_is_marked(mixed: Path):
    result, page = audited(mixed, accept=("too-few",))
    assert next(item for item in result.audit.findings if item.code == "too-few").accepted
    assert re.search(r'<span class="flag [a-z]+">accepted</span> \d+ different usable images', page)


def test_a_finding_over_many_folds_and_says_what_is_left_in_the_json(tmp_path: Path):
    folder = tmp_path / "set"
    for index in range(30):
        noise(folder / f"{index}.png", 64, sigma=10 + index)
    result, page = audited(folder)
    small = next(item for item in result.audit.findings if item.code == "too-small")
    assert heading(small, 30) == "30 of 30 are too small"
    assert "<details><summary>6 more</summary>" in page
    cut = result.audit.model_copy(update={"findings": (small.model_copy(update={"images": small.images[:10]}),)})
    assert "20 more are in audit.json" in render_audit("x", replace(result, audit=cut), settings())


def test_a_group_of_thousands_does_not_fill_the_page(mixed: Path):
    result, _ = audited(mixed)
    names = tuple(image.path for image in result.images if image.width_px)
    large = DuplicateGroup(number=1, kind="near", images=names * 20, widest=6)
    page = render_audit("x", replace(result, groups=[large] * 400), settings())
    assert f"and {len(names) * 20 - 24} more" in page
    assert "100 more groups are in audit.json" in page


def test_the_distributions_count_every_image_once(mixed: Path):
    result, _ = audited(mixed)
    read = sum(image.width_px > 0 for image in result.images)
    sides = side_bars(result.images, settings())
    assert [bar.label for bar in sides] == [
        "below 256 px", "256–511 px", "512–767 px", "768–1023 px", "1024–2047 px", "2048 px and more",
    ]  # fmt: skip
    assert [bar.count for bar in sides] == [1, 0, read - 1, 0, 0, 0]
    assert sum(bar.count for bar in shape_bars(result.images)) == read
    assert sum(bar.share for bar in shape_bars(result.images)) == pytest.approx(1)
    assert [(bar.label, bar.count) for bar in bucket_bars(result.images, result.audit.buckets)] == [("512 × 512", 8)]


@pytest.mark.parametrize(
    ("size", "shape"),
    [
        ((512, 512), "square, or nearly"), ((768, 512), "3:2 to 2:1"), ((640, 512), "5:4 to 3:2"),
        ((1024, 512), "2:1 and wider"), ((512, 640), "4:5 to 2:3"), ((512, 768), "2:3 to 1:2"),
        ((500, 1001), "1:2 and taller"),
    ],
)  # fmt: skip
def test_shapes_are_named_as_people_name_them(size: tuple[int, int], shape: str, mixed: Path):
    image = audited(mixed)[0].images[-1].model_copy(update={"width_px": size[0], "height_px": size[1]})
    assert [bar.label for bar in shape_bars([image]) if bar.count] == [shape]


def test_the_stage_writes_the_page_into_the_run(mixed: Path, tmp_path: Path):
    (mixed / "tiny.png").unlink()
    spec = StyleSpec(name="mine", trigger="t", dataset=DatasetSection(images=str(mixed)))
    run = RunPaths(tmp_path / "runs" / "mine" / "one")
    Pipeline(spec, run, silent).execute([STAGE])
    page = (run.audit / "index.html").read_text(encoding="utf-8")
    assert "<h1>mine</h1>" in page
    (mixed / "another.png").symlink_to("/etc/hostname")
    assert Pipeline(spec, run, silent).execute([STAGE]) == 1, "what is left out is part of what was looked at"


@pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data beside the project")
def test_500_images_make_a_page_of_a_few_megabytes(tmp_path: Path):
    """A page of 4.2 MB of real thumbnails was loaded and laid out in 0.4 s by Chromium on 2 busy cores."""
    asked = settings()
    result = audit_folder(DATA / "anime_mikabul", asked, silent)
    many = {f"{number} {path}": jpeg for number in range(5) for path, jpeg in result.thumbnails.items()}
    images = [image.model_copy(update={"path": f"{n} {image.path}"}) for n in range(5) for image in result.images]
    large = AuditResult(result.audit, images, [], many)
    path = write_audit_page(tmp_path, "many", large, asked)
    assert len(many) == 515
    assert path.stat().st_size < 5_000_000
