"""`orchestrate.py audit`: folders without a style, all of them looked at, nothing written beside the images."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

import orchestrate
from brushset.cli.guard import guarded
from brushset.files import digest_files, list_files


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In an empty folder; puts the handlers back that a command sets."""
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    kept = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    yield
    for signum, handler in kept.items():
        signal.signal(signum, handler)


def call(*argv: str) -> int:
    return guarded(orchestrate.app, argv)


def draw(folder: Path, count: int = 3, side: int = 512) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        small = Image.effect_noise((32, 32), 60 + number).convert("RGB")
        small.resize((side, side)).save(folder / f"{number}.png")
    return folder


def test_a_folder_needs_no_style_and_gets_a_table_findings_a_page_and_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = draw(tmp_path / "my images")
    assert call("audit", str(folder)) == 0
    out, err = capsys.readouterr()
    assert re.search(r"my images +│ +3 │ +3 │", out)
    assert "! too-few: 3 different usable images" in out
    assert "; fix: add images" in out
    assert "page: runs/_audit/my images/index.html" in out
    assert err == ""
    assert (Path("runs/_audit/my images/index.html")).is_file()
    assert json.loads(Path("runs/_audit/my images/audit.json").read_text())["audit"]["found"] == 3


def test_the_folders_are_read_only(tmp_path: Path):
    folder = draw(tmp_path / "set")
    (folder / "broken.png").write_text("x")
    before = digest_files(list_files(folder), folder)
    assert call("audit", str(folder)) == 0
    assert digest_files(list_files(folder), folder) == before


def test_all_folders_are_looked_at_before_the_code_is_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    good, bad = draw(tmp_path / "good"), draw(tmp_path / "bad", side=60)
    assert call("audit", str(tmp_path / "none"), str(bad), str(good)) == 3
    out, err = capsys.readouterr()
    assert [line.split(" │")[0].strip("│ ") for line in out.splitlines() if line.startswith("│")] == ["bad", "good"]
    assert "✗ too-small: 3 of 3" in out
    assert err.splitlines() == [
        f"error: {tmp_path}/none: no such folder; fix: put the images there or pass --images DIR",
        "error: bad: 3 of 3 images cannot be trained on (too-small); fix: as told above, or see runs/_audit/bad/index.html",
    ]
    assert sorted(path.name for path in Path("runs/_audit").iterdir()) == ["bad", "good"]


def test_an_accepted_finding_lets_the_set_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    bad = draw(tmp_path / "bad", side=60)
    assert call("audit", str(bad), "--set", "dataset.accept=too-small") == 0
    assert "too-small (accepted)" in capsys.readouterr().out


def test_a_file_that_cannot_be_read_is_one_line_and_the_set_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = draw(tmp_path / "set")
    for number in range(2):
        (folder / f"[red]{number}\n.png").write_bytes(b"" if number else b"text")
    (folder / "out.png").symlink_to("/etc/hostname")
    for number in range(2):
        (folder / f"\x1b[31m{number}.png").write_bytes((folder / "0.png").read_bytes())
    assert call("audit", str(folder)) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    for line in (
        "  ! unreadable: 2 of 7 cannot be read; fix: replace or remove them",
        r"      [red]0\n.png: text, not an image; fix: remove it",
        r"      [red]1\n.png: empty: 0 bytes; fix: download or copy it again, or remove it",
        "      out.png: a link out of the folder; fix: copy the file itself into the folder",
    ):
        assert line in out.splitlines()


def test_settings_and_their_errors_work_without_a_style(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = draw(tmp_path / "set", side=300)
    assert call("audit", str(folder), "--set", "dataset.resolution=256", "--set", "dataset.min_images=3") == 0
    assert "set: ok" in capsys.readouterr().out
    assert call("audit", str(folder), "--set", "dataset.min_imges=3") == 2
    assert 'did you mean "min_images"?' in capsys.readouterr().err
    assert call("audit", str(folder), "--set", "dataset.accept=too-smal") == 2
    assert 'did you mean "too-small"?' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("cartoon",), "cartoon: no such folder; did you mean --style cartoon?"),
        (("--style", "cartooon"), 'did you mean "cartoon"?'),
        ((".", "--style", "cartoon", "--style", "anime"), "folders and several styles; fix: one --style"),
        (("--out", "x", "."), "x: lies in the folder of images"),
        ((".",), "runs/_audit/home: lies in the folder of images . , where nothing is ever written".replace(" ,", ",")),
    ],
)
def test_wrong_usage_is_code_2_and_one_line(
    argv: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    draw(tmp_path / "home" / "sub")
    assert call("audit", *argv) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1
    assert not Path("runs").exists()


def test_a_style_brings_its_settings_to_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = draw(tmp_path / "set")
    assert call("audit", str(folder), "--style", "cartoon", "--set", "dataset.min_images=2") == 0
    assert "set: ok" in capsys.readouterr().out


def test_styles_with_their_images_are_named_by_style(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = draw(tmp_path / "set")
    assert call("audit", "--images", f"anime={folder}", "--images", f"cartoon={folder}") == 0
    out = capsys.readouterr().out
    assert "runs/_audit/anime/index.html" in out
    assert "runs/_audit/cartoon/index.html" in out
    assert call("audit", "--images", str(folder)) == 0
    assert "runs/_audit/set/index.html" in capsys.readouterr().out


def test_folders_of_one_name_do_not_overwrite_each_other(tmp_path: Path):
    one, two = draw(tmp_path / "a" / "images"), draw(tmp_path / "b" / "images", count=4)
    assert call("audit", str(one), str(two)) == 0
    found = {path.parent.name: json.loads(path.read_text())["audit"]["folder"] for path in Path("runs").rglob("*.json")}
    assert found == {"images": str(one), "b-images": str(two)}
    assert call("audit", str(two)) == 0
    assert call("audit", str(one)) == 0
    assert sorted(path.name for path in Path("runs/_audit").iterdir()) == ["b-images", "images"]
    assert json.loads(Path("runs/_audit/images/audit.json").read_text())["audit"]["folder"] == str(one)


def test_the_same_folder_twice_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = draw(tmp_path / "set")
    assert call("audit", str(folder), f"{folder}/../set/") == 0
    assert capsys.readouterr().out.count("set: too few") == 1


def test_out_is_where_it_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    one, two = draw(tmp_path / "one"), draw(tmp_path / "two")
    assert call("audit", str(one), "--out", "here") == 0
    assert sorted(path.name for path in Path("here").iterdir()) == ["audit.json", "index.html"]
    assert call("audit", str(one), str(two), "--out", "there") == 0
    assert sorted(path.name for path in Path("there").iterdir()) == ["one", "two"]
    assert "page: there/two/index.html" in capsys.readouterr().out
    assert not Path("runs").exists()


def test_json_is_the_only_thing_on_stdout_and_holds_the_findings(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    good, bad = draw(tmp_path / "good"), draw(tmp_path / "bad", side=60)
    assert call("audit", str(good), str(bad), str(tmp_path / "none"), "--json") == 3
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["event"], line.get("style")) for line in lines] == [
        ("error", None), ("audit", "good"), ("audit", "bad"), ("error", None),
    ]  # fmt: skip
    assert Path(lines[1]["page"]).is_file()
    assert lines[2]["findings"][0]["code"] == "too-small"
    assert lines[2]["verdict"] == "unusable"


@pytest.mark.parametrize("name", ["-rf", "$(touch x)", 'a "b"', "two\nlines", "[red]", "🎨"], ids=ascii)
def test_folders_with_odd_names_work(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    draw(tmp_path / "home" / name)
    assert call("audit", "--runs-dir", str(tmp_path / "runs"), "--", name) == 0
    assert (tmp_path / "runs" / "_audit" / name / "index.html").is_file()
    assert name.replace("\n", r"\n") in capsys.readouterr().out
    assert sorted(path.name for path in Path().iterdir()) == [name]
