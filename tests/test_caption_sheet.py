"""Captions go to a spreadsheet and come back, whatever the spreadsheet makes of the file."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brushset.captions.sheet import COLUMNS, SheetRow, read_sheet, sheet_of
from brushset.errors import InputError

CURRENT = {"a.png": "wcstyle, a cat", "b.png": "wcstyle, caf\u00e9, red", "heldout/c.png": "wcstyle"}


def rows(**changed: str) -> list[SheetRow]:
    texts = CURRENT | {name.replace("_", "."): text for name, text in changed.items()}
    return [
        SheetRow(image=image, source="blip", caption=text, tokens=3, cut_off="", original=f"/x/{image}")
        for image, text in texts.items()
    ]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "captions.csv"


def write(path: Path, **changed: str) -> Path:
    path.write_bytes(sheet_of(rows(**changed)))
    return path


def refusal(path: Path) -> list[str]:
    with pytest.raises(InputError) as caught:
        read_sheet(path, CURRENT, "wcstyle")
    return str(caught.value).splitlines()


def test_what_was_not_edited_changes_nothing(path: Path):
    assert read_sheet(write(path), CURRENT, "wcstyle") == {}


def test_excel_finds_a_mark_crlf_and_the_columns(path: Path):
    content = write(path).read_bytes()
    assert content.startswith(b"\xef\xbb\xbfimage,source,caption,tokens,cut_off,original\r\n")
    assert content.count(b"\r\n") == 4


def test_edits_come_back_with_the_trigger_in_front(path: Path):
    assert read_sheet(write(path, a_png="a dog,  running", b_png="wcstyle, red"), CURRENT, "wcstyle") == {
        "a.png": "wcstyle, a dog, running",
        "b.png": "wcstyle, red",
    }


def test_lines_in_a_cell_become_parts(path: Path):
    assert read_sheet(write(path, a_png="a dog\nrunning"), CURRENT, "wcstyle") == {"a.png": "wcstyle, a dog, running"}


@pytest.mark.parametrize("delimiter", [";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\r\n", "\n"])
def test_other_delimiters_encodings_and_line_ends_are_read(delimiter: str, encoding: str, end: str, path: Path):
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator=end)
    writer.writerows([["Caption", " Image "], ["a dog, r\u00e9d; blue", "a.png"], ["", ""]])
    path.write_bytes(text.getvalue().encode(encoding))
    assert read_sheet(path, CURRENT, "wcstyle") == {"a.png": "wcstyle, a dog, r\u00e9d; blue"}


def test_a_separator_line_is_honoured(path: Path):
    path.write_text("sep=;\r\nimage;caption\r\na.png;a dog\r\n", newline="")
    assert read_sheet(path, CURRENT, "wcstyle") == {"a.png": "wcstyle, a dog"}


def test_cells_that_a_spreadsheet_would_run_are_disarmed_and_come_back(path: Path):
    nasty = {"=cmd|'/c calc'!A1.png": "@style, +1", "-x.png": "@style", "'=y.png": "@style, a"}
    entries = [SheetRow(image, "blip", text, 3, "", f"={image}") for image, text in nasty.items()]
    path.write_bytes(sheet_of(entries))
    table = list(csv.reader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline="")))
    assert all(cell[:1] not in "=+-@" or not cell for row in table for cell in row)
    assert read_sheet(path, nasty, "@style") == {}


@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1))
def test_any_caption_survives_the_way_there_and_back(text: str, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("sheet") / "x.csv"
    path.write_bytes(sheet_of([SheetRow("a.png", "blip", f"t, {text}", 1, "", text)]))
    cell = list(csv.reader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline="")))[1][2]
    assert cell == f"t, {text}"


def test_excels_ansi_is_refused_with_what_to_click(path: Path):
    path.write_bytes(sheet_of(rows()).decode("utf-8-sig").encode("cp1252"))
    (line,) = refusal(path)
    assert "line 3: not UTF-8" in line
    assert "CSV UTF-8 (Comma delimited)" in line


def test_all_that_is_wrong_is_told_by_row(path: Path):
    path.write_text("image,caption\na.png,a dog\nno.png,a dog\nb.png, \na.png,again\nheldout/c.png,a dog, and more\n")
    lines = refusal(path)
    assert [line.split("captions.csv ")[1].split(":")[0] for line in lines] == ["row 3", "row 4", "row 5", "row 6"]
    assert 'no image "no.png"' in lines[0]
    assert "has no caption" in lines[1]
    assert "a second time" in lines[2]
    assert "quote the caption" in lines[3]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no columns"),
        ("image,captoin\na.png,x\n", "no columns"),
        ("image,caption\n", "no rows"),
        ('image,caption\na.png,"x\n', "quotation mark"),
        ("caption,x,image\nonly a caption\n", "cells are missing"),
    ],
)
def test_files_that_are_no_export_are_refused(text: str, reason: str, path: Path):
    path.write_text(text)
    (line,) = refusal(path)
    assert reason in line
    assert "fix:" in line


def test_a_file_that_is_not_there_is_one_line(path: Path):
    assert "cannot be read" in refusal(path)[0]


def test_a_thousand_wrong_rows_are_counted(path: Path):
    path.write_text("image,caption\n" + "".join(f"{index}.png,x\n" for index in range(1000)))
    lines = refusal(path)
    assert len(lines) == 21
    assert lines[-1] == "… and 980 more"


def test_the_columns_are_those_of_a_row():
    assert tuple(SheetRow.__dataclass_fields__) == COLUMNS
