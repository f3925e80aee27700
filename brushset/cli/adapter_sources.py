"""`anime:0.6`, `anime@6`, `A.safetensors:0.4`, `folder`: which adapters are meant, and how strong.

What stands before the last colon is a style, one of its kept epochs, a file or a folder; what stands after it a weight.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from brushset.cli.trained import TrainedStyle, trained_style
from brushset.errors import BrushsetError, UsageError, VerificationFailed
from brushset.files import shown
from brushset.lora.adapter import WEIGHT_NAME, read_adapter
from brushset.lora.merge.mix import Part
from brushset.lora.merge.weights import Weight, parse_weight
from brushset.paths import RunsDir
from brushset.spec import STYLE_NAME

T = TypeVar("T")


def read_parts(texts: Sequence[str], runs: RunsDir) -> list[Part]:
    """Reads every adapter named, as `STYLE|FILE[:WEIGHT]`; what is wrong with any of them is one error.

    Raises:
        UsageError: no such file or style, a weight that is none, another method's or family's file.
        VerificationFailed: only broken files were found.
    """
    failures: list[BrushsetError] = []
    found = [each for text in texts if (each := _tried(partial(_find, text, runs), failures))]
    names = short_names([(source, path) for source, path, _ in found])
    adapters = [_tried(partial(read_adapter, path), failures) for _, path, _ in found]
    if failures:
        kind = VerificationFailed if all(isinstance(each, VerificationFailed) for each in failures) else UsageError
        raise failures[0] if len(failures) == 1 else kind.of_many([str(each) for each in failures])
    return [
        Part(name, adapter, weight)
        for name, adapter, (_, _, weight) in zip(names, adapters, found, strict=True)
        if adapter is not None
    ]


def split_weight(text: str) -> tuple[str, Weight]:
    """`anime:0.6` → ("anime", 0.6); a name alone has weight 1. A drive's colon is none of ours."""
    source, weight = split_source(text)
    return source, Weight(1.0) if weight is None else parse_weight(weight, text)


def split_source(text: str) -> tuple[str, str | None]:
    """`anime:0.6` → ("anime", "0.6"); None where there is no weight. A drive's colon is none of ours."""
    source, colon, weight = text.rpartition(":")
    if not colon or re.match(r"[\\/]", weight) or Path(text).exists():
        return text, None
    if not source:
        raise UsageError(f"{text}: no name before the colon; expected STYLE:WEIGHT or FILE:WEIGHT, such as anime:0.6")
    return source, weight


@dataclass(frozen=True)
class Located:
    """A file or folder, and the style whose it is, where it was named by that."""

    path: Path
    style: TrainedStyle | None = None
    epoch: int | None = None


def _tried(read: Callable[[], T], failures: list[BrushsetError]) -> T | None:
    """What `read` returns; where it fails the failure is kept, so that all of them are told at once."""
    try:
        return read()
    except BrushsetError as error:
        failures.append(error)
        return None


def _find(text: str, runs: RunsDir) -> tuple[str, Path, Weight]:
    source, weight = split_weight(text)
    return source, locate(source, runs).path, weight


def locate(source: str, runs: RunsDir) -> Located:
    """A style's newest trained file, that of one of its epochs (`anime@6`), or the path as it stands.

    Raises:
        UsageError: there is none.
    """
    path, known_styles = Path(source), runs.styles()
    name, at, epoch = source.partition("@")
    if name in known_styles and re.fullmatch(STYLE_NAME, name) and (not at or epoch.isdecimal()):
        style = trained_style(runs, name)
        number = int(epoch) if at else None
        return Located(style.file(number), style, number)
    if path.exists():
        return Located(path)
    if name in known_styles:
        raise UsageError(
            f"{source}: {epoch!r} is no epoch; {name}@6 is epoch 6; a part of the steps goes after the weight, as {name}:0.8@0-0.5"
        )
    if path.suffix or path.name != source:
        raise UsageError(f"{source}: no such file")
    known = ", ".join(known_styles) or "none"
    raise UsageError(
        f"{source}: neither a file nor a style with a run in {shown(runs.root)} (there are: {known}); "
        f"fix: the path of a .safetensors file, or train it: orchestrate.py --style {name}"
    )


def short_names(sources: Sequence[tuple[str, Path]]) -> list[str]:
    """Short names that differ: the style's or file's own; with its folder, then a number, where two have the same."""
    plain = [_short(source, path) for source, path in sources]
    folders = {
        name: {path.absolute().parent for other, (_, path) in zip(plain, sources, strict=True) if other == name}
        for name in plain
    }
    longer = [
        f"{path.absolute().parent.name}/{name}" if len(folders[name]) > 1 else name
        for name, (_, path) in zip(plain, sources, strict=True)
    ]
    return [
        f"{name} ({longer[: index + 1].count(name)})" if longer.count(name) > 1 else name
        for index, name in enumerate(longer)
    ]


def _short(source: str, path: Path) -> str:
    if path.name == WEIGHT_NAME:
        return path.absolute().parent.name
    return path.stem if path.suffix == ".safetensors" and source == str(path) else Path(source).name
