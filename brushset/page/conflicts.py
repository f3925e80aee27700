"""`conflicts`: a heat map of every pair of adapters by block, as a picture to look at by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from brushset.lora.conflict import ALL, TEXT, UNET, Figures, Pair

_MAX_OCTAVES = 3.0  # eight times as strong, and beyond
_MAX_NAME = 28


def draw_conflicts(pairs: Sequence[Pair], path: Path) -> None:
    """Writes three maps, a row a pair and a column a block: cosine, overlap of what they write, ratio of norms."""
    from matplotlib.figure import Figure

    blocks, names = list(pairs[0].blocks), [f"{_cut(pair.first)}\n{_cut(pair.second)}" for pair in pairs]
    sides = sum(block in (ALL, UNET, TEXT) for block in blocks)
    figure = Figure(figsize=(4 + 0.55 * len(blocks), 3.2 + 1.1 * len(pairs)), layout="constrained")
    panels: tuple[tuple[str, str, float, Callable[[Figures], float]], ...] = (
        ("cosine of ΔW: red pulls the same way, blue against", "RdBu_r", 1.0, lambda each: each.cosine),
        ("overlap of what they write, less chance", "Purples", 1.0, lambda each: each.output_overlap),
        ("strength, first over second, in doublings (+1: twice as strong)", "PuOr", _MAX_OCTAVES, _octaves),
    )
    for axes, (title, colours, limit, value) in zip(figure.subplots(len(panels), 1), panels, strict=True):
        values = [[value(pair.blocks[block]) for block in blocks] for pair in pairs]
        lowest = 0.0 if colours == "Purples" else -limit
        image = axes.imshow(values, cmap=colours, vmin=lowest, vmax=limit, aspect="auto")
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xticks(range(len(blocks)), blocks, rotation=60, ha="right", fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.axvline(sides - 0.5, color="black", linewidth=1)
        for row, line in enumerate(values):
            for column, number in enumerate(line):
                ink = "white" if abs(number) > 0.65 * limit else "black"
                alone = _alone(pairs[row].blocks[blocks[column]]) if value is _octaves else ""
                axes.text(column, row, alone or _short(number), ha="center", va="center", fontsize=7, color=ink)
        figure.colorbar(image, ax=axes, pad=0.01)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _octaves(figures: Figures) -> float:
    ratio = figures.ratio
    if ratio <= 0 or math.isinf(ratio):
        return -_MAX_OCTAVES if ratio <= 0 else _MAX_OCTAVES
    return max(-_MAX_OCTAVES, min(_MAX_OCTAVES, math.log2(ratio)))


def _alone(figures: Figures) -> str:
    """Which of the two is there by itself in a block; empty where both are, or none."""
    first, second = figures.norms
    if bool(first) == bool(second):
        return ""
    return "1st\nonly" if first else "2nd\nonly"


def _cut(name: str) -> str:
    """A name that leaves room for the map."""
    return name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 1]}…"


def _short(number: float) -> str:
    """Two digits, no sign on what rounds to nothing."""
    text = f"{number:.2f}"
    return "0" if float(text) == 0 else text
