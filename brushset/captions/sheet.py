"""Captions as a spreadsheet, and back: CSV in UTF-8 with a byte-order mark, without which Excel takes it for Latin-1.

A cell that begins with =, +, - or @ is a formula to a spreadsheet, whoever wrote the file name: such cells get an
apostrophe in front, which is taken off again. What spreadsheets make of a file when they save it is read back:
semicolons or tabs for commas, UTF-16, a first line "sep=;", other columns, another order.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from brushset.captions.text import as_one_line, with_trigger
from brushset.errors import InputError
from brushset.files import shown

COLUMNS = ("image", "source", "caption", "tokens", "cut_off", "original")
_NEEDED = ("image", "caption")
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_DELIMITERS = ",;\t"
_SHOWN = 20


@dataclass(frozen=True)
class SheetRow:
    """One image: its caption, who wrote it, its length in tokens, what of it is not trained, the user's file."""

    image: str
    source: str
    caption: str
    tokens: int
    cut_off: str
    original: str


def sheet_of(rows: Sequence[SheetRow]) -> bytes:
    """The file's bytes."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    writer.writerows([_guarded(str(getattr(row, column))) for column in COLUMNS] for row in rows)
    return codecs.BOM_UTF8 + text.getvalue().encode()


def read_sheet(path: Path, current: Mapping[str, str], trigger: str) -> dict[str, str]:
    """The captions of a sheet that differ from the current ones, trigger first; nothing of it is taken where anything
    is wrong.

    Args:
        path: the file.
        current: image → caption, as they stand.
        trigger: put in front where it is not.

    Raises:
        InputError: the file cannot be read, has no such columns, or has rows that are wrong, a line each.
    """
    name, text = shown(path), _decoded(path)
    header, rows = _table(name, text)
    texts: dict[str, str] = {}
    findings = []
    for number, row in rows:
        if problem := _problem(row, header, current, texts):
            findings.append(f"{name} row {number}: {problem}")
            continue
        image = _unguarded(row[header.index("image")].strip())
        texts[image] = with_trigger(as_one_line(_unguarded(row[header.index("caption")])), trigger)
    if not rows:
        findings.append(f"{name}: has no rows; fix: --export it anew")
    if findings:
        rest = [f"… and {len(findings) - _SHOWN} more"] if len(findings) > _SHOWN else []
        raise InputError.of_many([*findings[:_SHOWN], *rest])
    return {image: text for image, text in texts.items() if text != current[image]}


def _problem(row: Sequence[str], header: Sequence[str], current: Mapping[str, str], texts: Mapping[str, str]) -> str:
    if any(cell.strip() for cell in row[len(header) :]):
        return f'{len(row)} cells under {len(header)} headings; fix: quote the caption: "…, …"'
    if len(row) < len(header) and len(row) <= max(header.index(column) for column in _NEEDED):
        return "cells are missing; fix: restore the row"
    image, caption = (_unguarded(row[header.index(column)].strip()) for column in _NEEDED)
    if image not in current:
        return f'no image "{image}" in this run; fix: --export again and edit that file'
    if not as_one_line(caption):
        return f"{image} has no caption; fix: write one, or the trigger alone, or remove the row to leave it as it is"
    if image in texts:
        return f"{image} stands here a second time; fix: keep one"
    return ""


def _decoded(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{shown(path)}: cannot be read: {error.strerror}") from error
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(
            f'{shown(path)} line {line}: not UTF-8; fix: in Excel save it as "CSV UTF-8 (Comma delimited)", in '
            "LibreOffice with the character set UTF-8"
        ) from error


def _table(name: str, text: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The headings in lower case, and the filled rows with their numbers in the spreadsheet."""
    skipped = 0
    if match := re.match(r"sep=(.)\r?\n", text, re.IGNORECASE):
        text, skipped, delimiters = text[match.end() :], 1, match[1]
    else:
        delimiters = _DELIMITERS
    first = text.split("\n", 1)[0]
    for delimiter in delimiters:
        header = [cell.strip().lower() for cell in next(csv.reader([first], delimiter=delimiter), [])]
        if all(column in header for column in _NEEDED):
            break
    else:
        raise InputError(
            f'{name}: the first row has no columns "image" and "caption"; fix: --export again and edit that file'
        )
    try:
        table = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise InputError(f"{name}: {error}; fix: a quotation mark is missing or too many") from error
    rows = [(number, row) for number, row in enumerate(table[1:], start=2 + skipped) if any(map(str.strip, row))]
    return header, rows


def _guarded(cell: str) -> str:
    return f"'{cell}" if _FORMULA.match(cell) else cell


def _unguarded(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
