"""The report's plots: SVG without a background, coloured by the page's own variables, so that dark mode fits too.

matplotlib knows no CSS variables; it draws in placeholder colours that are replaced in its text. Fonts are the page's.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from brushset.records import LossPoint, ValidationPoint

if TYPE_CHECKING:
    import numpy as np
    from markupsafe import Markup

# Placeholder → variable of the page. Blue and orange stay apart for colour-blind readers, and differ in lightness.
_INK, _FAINT, _LOSS, _RATE = "#010101", "#020202", "#030303", "#040404"
_VARIABLES = {_INK: "var(--muted)", _FAINT: "var(--rule)", _LOSS: "var(--blue)", _RATE: "var(--orange)"}
_HELD_OUT = _RATE
_MARKED_BELOW = 40


def plot_loss(points: Sequence[LossPoint], validation: Sequence[ValidationPoint] = ()) -> Markup:
    """Loss over optimizer steps, each point thin and their running mean bold; on it the loss on the held-out images, as
    squares; below it the learning rate where known.

    Empty where there are fewer than two points.
    """
    import matplotlib as mpl
    import numpy as np
    from markupsafe import Markup
    from matplotlib.figure import Figure

    if len(points) < 2:
        return Markup()

    steps, losses = [point.step for point in points], np.array([point.loss for point in points])
    rates = [(point.step, point.lr) for point in points if point.lr is not None]
    panels = 2 if len(rates) > 1 else 1
    marker = "o" if len(points) < _MARKED_BELOW else ""
    with mpl.rc_context(_style()):
        figure = Figure(figsize=(5.8, 2.4 if panels == 1 else 3.4), layout="constrained")
        axes = figure.subplots(
            panels, 1, sharex=True, squeeze=False, height_ratios=[3, 1.2] if panels == 2 else [1]
        ).ravel()
        axes[0].plot(steps, losses, color=_LOSS, linewidth=0.8, alpha=0.45, marker=marker, markersize=4)
        if len(points) >= _MARKED_BELOW:
            axes[0].plot(steps, running_mean(losses), color=_LOSS, linewidth=2.2)
        if validation:
            at, held_out = [point.step for point in validation], [point.loss for point in validation]
            axes[0].plot(at, held_out, color=_HELD_OUT, linewidth=1.6, linestyle="--", marker="s", markersize=5)
        axes[0].set_ylabel("loss")
        if panels == 2:
            axes[1].plot(*zip(*rates, strict=True), color=_RATE, linewidth=2, marker=marker, markersize=4)
            axes[1].set_ylabel("learning rate")
            axes[1].yaxis.set_major_formatter(lambda rate, _: f"{rate:g}")
            axes[1].locator_params(axis="y", nbins=3)
        axes[-1].set_xlabel("optimizer step")
        axes[-1].xaxis.get_major_locator().set_params(integer=True)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue(), "Loss over optimizer steps")


def running_mean(values: np.ndarray) -> np.ndarray:
    """The mean of each value's surroundings, a twentieth of the series wide; narrower at the ends."""
    import numpy as np

    half = max(1, len(values) // 40)
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    first, last = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return np.asarray((total[last] - total[first]) / (last - first))


def _style() -> dict[str, object]:
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": "brushset",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": _FAINT,
        "axes.labelcolor": _INK,
        "xtick.color": _FAINT,
        "ytick.color": _FAINT,
        "xtick.labelcolor": _INK,
        "ytick.labelcolor": _INK,
        "text.color": _INK,
        "axes.grid": True,
        "grid.color": _FAINT,
        "grid.linewidth": 0.6,
    }


def _inline(svg: str, label: str) -> Markup:
    """The <svg> element alone: no prolog, no metadata, no size of its own, and the page's colours and fonts."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r'font: ([\d.]+)px [^;"]*', r"font-size: \1px", body)
    body = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", body, count=1)
    body = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", body, count=1)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, variable)
    from markupsafe import Markup

    # Drawn by us from numbers; nothing a user wrote is in it.
    return Markup(body.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1))  # noqa: S704
