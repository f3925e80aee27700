"""`inspect --chart`: norms of an adapter's ΔW by block, as a picture to look at by itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

_BLUE = "#3565a9"


def draw_norms(blocks: Mapping[str, float], title: str, path: Path) -> None:
    """Writes a bar chart, one bar a block from the text encoder to the UNet's last; the format is the suffix's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1.2 + 0.28 * len(blocks)), layout="constrained")
    axes = figure.subplots()
    names = list(blocks)[::-1]
    bars = axes.barh(names, [blocks[name] for name in names], color=_BLUE)
    axes.bar_label(bars, fmt="%.3g", padding=3)
    axes.margins(x=0.12)
    axes.set_xlabel("‖ΔW‖ (Frobenius), all modules of the block together")
    axes.set_title(title, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
