"""Captions out to a spreadsheet and back in, by the command line."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import front_door
import pytest
from PIL import Image


class Workplace:
    """A folder of images and a runs folder; runs the command."""

    def __init__(self, root: Path) -> None:
        self.root, self.sheet = root, root / "captions.csv"
        folder = root / "in"
        folder.mkdir()
        for name, colour in (("red hill", "red"), ("=green hill", "lime"), ("blue hill", "blue")):
            picture = Image.effect_noise((320, 320), 60)
            Image.blend(Image.merge("RGB", (picture,) * 3), Image.new("RGB", (320, 320), colour), 0.5).save(
                folder / f"{name}.png"
            )

    def run(self, *words: str) -> front_door.Done:
        return front_door.call("caption", "--style", "cartoon", "--runs-dir", str(self.root / "runs"), *words)

    def caption(self) -> None:
        settings = (
            "caption.captioner=filename",
            "dataset.resolution=256",
            "dataset.min_images=2",
            "train.engine=native",
        )
        done = self.run("--images", str(self.root / "in"), *(word for text in settings for word in ("--set", text)))
        assert done.returncode == 0, done.stderr

    def rows(self) -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO(self.sheet.read_bytes().decode("utf-8-sig"), newline="")))

    def edit(self, before: str, after: str) -> None:
        text = self.sheet.read_bytes().decode("utf-8-sig")
        assert before in text
        self.sheet.write_bytes(text.replace(before, after).encode("utf-8-sig"))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    monkeypatch.setenv("SD_SCRIPTS_DIR", "")
    return Workplace(tmp_path)


@pytest.mark.slow
def test_captions_go_out_are_edited_and_come_back_to_stay(place: Workplace):
    place.caption()
    exported = place.run("--export", str(place.sheet))
    assert exported.returncode == 0, exported.stderr
    assert "3 captions of" in exported.stdout
    assert "--import" in exported.stdout
    rows = {Path(row["original"]).name: row for row in place.rows()}
    assert rows["red hill.png"]["caption"] == "cartoonstyle, red hill"
    assert rows["red hill.png"]["source"] == "filename"
    assert int(rows["red hill.png"]["tokens"]) >= 4

    place.edit('"cartoonstyle, red hill"', '"a hill, at dusk"')
    shown = place.run("--import", str(place.sheet), "--dry-run")
    assert "1 of 3 captions would be changed" in shown.stdout
    again = place.run("--export", str(place.sheet))
    assert again.returncode == 2
    assert "1 captions that the run does not have" in again.stderr

    imported = place.run("--import", str(place.sheet))
    assert imported.returncode == 0, imported.stderr
    assert "- cartoonstyle, red hill" in imported.stdout
    assert "+ cartoonstyle, a hill, at dusk" in imported.stdout
    assert "1 edited, 2 filename" in imported.stderr

    place.caption()
    place.sheet.unlink()
    place.run("--export", str(place.sheet))
    edited = next(row for row in place.rows() if row["source"] == "edited")
    assert edited["caption"] == "cartoonstyle, a hill, at dusk"


@pytest.mark.slow
def test_a_wrong_sheet_changes_nothing_and_names_its_rows(place: Workplace):
    place.caption()
    place.run("--export", str(place.sheet))
    name = place.rows()[1]["image"]
    place.edit(name, "elsewhere.png")
    place.edit('"cartoonstyle, red hill"', '"a hill, at dusk"')
    refused = place.run("--import", str(place.sheet))
    assert refused.returncode == 3
    assert 'no image "elsewhere.png" in this run' in refused.stderr
    images = (place.root / "runs" / "cartoon" / "latest").resolve() / "images"
    assert not any("dusk" in path.read_text() for path in images.glob("*.txt"))


@pytest.mark.slow
def test_machines_get_json_and_several_styles_are_refused(place: Workplace):
    place.caption()
    answer = place.run("--export", str(place.sheet), "--json")
    assert json.loads(answer.stdout.splitlines()[-1])["images"] == 3
    several = place.run("--style", "anime", "--export", str(place.sheet))
    assert several.returncode == 2
    assert "--export and --import work on one style, not on cartoon, anime" in several.stderr
