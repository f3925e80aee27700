"""Which settings are tried: every combination of a grid, a user's own list, or points drawn at random from ranges.

A point is settings by `section.key`. Sources are multiplied: a grid over seeds tries every seed at every point.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brushset.errors import UsageError
from brushset.files import parse_toml_value, read_toml, shown

Point = Mapping[str, Any]
_KEY = re.compile(r"^[a-z_]+(\.[a-z0-9_]+){1,2}$")
_RANGE = re.compile(r"^(?P<low>[^:]+?)\.\.(?P<high>[^:]+?)(?P<log>:log)?$")
_DIGITS = 3  # of a drawn number: more would tell nothing, and fill the tables
SEED = "train.seed"


@dataclass(frozen=True)
class Range:
    """Numbers between two bounds; whole ones where both bounds are. `log`: as likely in every octave."""

    key: str
    low: float
    high: float
    log: bool
    whole: bool

    def draw(self, dice: random.Random) -> float | int:
        """One of them."""
        if self.log:
            value = math.exp(dice.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = dice.uniform(self.low, self.high)
        if self.whole:
            return min(int(self.high), max(int(self.low), round(value)))
        return min(self.high, max(self.low, float(f"{value:.{_DIGITS}g}")))


def parse_grid(texts: Sequence[str]) -> list[Point]:
    """`train.network_dim=8,16,32` and others → every combination, the last one changing fastest.

    Raises:
        UsageError: everything that is wrong, a line each.
    """
    axes = _each(texts, _axis, "--grid")
    _refuse_twice("--grid", [key for key, _ in axes])
    keys = [key for key, _ in axes]
    return [dict(zip(keys, values, strict=True)) for values in itertools.product(*(values for _, values in axes))]


def parse_ranges(texts: Sequence[str]) -> list[Range]:
    """`train.unet_lr=1e-5..5e-4:log` and others.

    Raises:
        UsageError: everything that is wrong, a line each.
    """
    found = _each(texts, _range, "--range")
    _refuse_twice("--range", [each.key for each in found])
    return found


def draw_points(ranges: Sequence[Range], count: int, seed: int) -> list[Point]:
    """So many different points, the same ones for the same seed: fewer only where there are no more."""
    dice = random.Random(seed)
    found: dict[str, Point] = {}
    for _ in range(count * 100):
        point = {each.key: each.draw(dice) for each in ranges}
        found.setdefault(json.dumps(point), point)
        if len(found) == count:
            break
    return list(found.values())


def read_list(path: Path) -> list[Point]:
    """Points that a user wrote: CSV with settings as column names (an empty cell leaves the setting alone), JSON Lines, or
    TOML with a `[[runs]]` table each.

    Raises:
        UsageError: everything that is wrong, a line each.
    """
    readers: dict[str, Callable[[Path], Iterable[Mapping[str, Any]]]] = {
        ".csv": _csv_rows, ".jsonl": _json_rows, ".json": _json_rows, ".toml": _toml_rows
    }  # fmt: skip
    if path.suffix.lower() not in readers:
        raise UsageError(f"--list {shown(path)}: fix: a .csv, .jsonl or .toml file")
    try:
        rows: list[Point] = [_flat(row) for row in readers[path.suffix.lower()](path)]
    except FileNotFoundError as error:
        raise UsageError(f"--list {shown(path)}: no such file") from error
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise UsageError(f"--list {shown(path)}: cannot be read: {error}") from error
    wrong = [
        f'--list {shown(path)}, run {number}: "{key}" is no setting; fix: section.key, such as train.network_dim'
        for number, row in enumerate(rows, 1)
        for key in row
        if not _KEY.match(key)
    ]
    if wrong or not rows:
        raise UsageError.of_many(wrong or [f"--list {shown(path)}: no run in it"])
    return rows


def multiply(*sources: Sequence[Point]) -> list[Point]:
    """Every combination of points of these sources; one without points counts for nothing.

    Raises:
        UsageError: two of them set the same key.
    """
    points: list[Point] = [{}]
    for source in sources:
        if twice := sorted({key for point in source for key in point} & {key for point in points for key in point}):
            raise UsageError(
                f"{', '.join(twice)}: set by more than one of --grid, --list, --range and --seeds; fix: one"
            )
        points = [{**point, **more} for point in points for more in source] if source else points
    return points


def as_setting(key: str, value: object) -> str:
    """A setting of a point as `--set` takes it."""
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def short_value(value: object) -> str:
    """A value of a setting as tables and plots show it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def varied(points: Sequence[Point]) -> list[str]:
    """The settings that are not the same in all of them, in the order in which they are first named."""
    keys = dict.fromkeys(key for point in points for key in point)
    return [key for key in keys if len({json.dumps(point.get(key)) for point in points}) > 1]


def _axis(text: str) -> tuple[str, list[Any]]:
    key, values = _key_and_value(text, "8,16")
    whole = parse_toml_value(f"[{values}]")
    found = whole if isinstance(whole, list) else [parse_toml_value(each.strip()) for each in values.split(",")]
    if not found or "" in found:
        raise UsageError("a value is missing")
    return key, list({json.dumps(value): value for value in found}.values())


def _range(text: str) -> Range:
    key, value = _key_and_value(text, "1e-5..5e-4:log")
    match = _RANGE.match(value)
    bounds = [parse_toml_value(match[name].strip()) for name in ("low", "high")] if match else []
    if not match or any(isinstance(bound, bool) or not isinstance(bound, int | float) for bound in bounds):
        raise UsageError(f"expected two numbers, such as {key}=1e-5..5e-4:log")
    low, high = bounds
    if not low < high or (match["log"] and low <= 0):
        raise UsageError(
            "the first number must be the smaller one" + (", and above 0 for :log" if match["log"] else "")
        )
    whole = isinstance(low, int) and isinstance(high, int)
    return Range(key, float(low), float(high), log=bool(match["log"]), whole=whole)


def _key_and_value(text: str, example: str) -> tuple[str, str]:
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not _KEY.match(key) or not value:
        raise UsageError(f"expected section.key=values, such as train.network_dim={example}")
    return key, value


def _each(texts: Sequence[str], parse: Callable[[str], Any], option: str) -> list[Any]:
    found, wrong = [], []
    for text in texts:
        try:
            found.append(parse(text))
        except UsageError as error:  # noqa: PERF203 - all of them are told
            wrong.append(f"{option} {text}: {error}")
    if wrong:
        raise UsageError.of_many(wrong)
    return found


def _refuse_twice(option: str, keys: Sequence[str]) -> None:
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise UsageError(f"{option}: {', '.join(twice)} is given twice; fix: all of its values in one {option}")


def _csv_rows(path: Path) -> Iterable[Mapping[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file, strict=True, restkey=""):
            yield {
                key.strip(): parse_toml_value(value.strip()) for key, value in row.items() if value and value.strip()
            }


def _json_rows(path: Path) -> Iterable[Mapping[str, Any]]:
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is no object")
            yield row


def _toml_rows(path: Path) -> Iterable[Mapping[str, Any]]:
    tables = read_toml(path)
    rows = tables.pop("runs", None)
    if tables or not isinstance(rows, list):
        raise ValueError("expected [[runs]] tables, and nothing else")
    yield from rows


def _flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys."""
    found: dict[str, Any] = {}
    for key, value in row.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found
