"""How the pages' plots are drawn: SVG without a background, coloured by the page's own variables, so that dark mode fits.

matplotlib knows no CSS variables; it draws in placeholder colours that are replaced in its text. Fonts are the page's. The
colours are Okabe and Ito's, which colour-blind readers tell apart; every series has a marker or a line style of its own too.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from brushset.records import LossPoint, ValidationPoint

if TYPE_CHECKING:
    import numpy as np
    from markupsafe import Markup

# Placeholder → variable of the page.
MUTED, FAINT, BLUE, ORANGE, TEAL, PINK, INK, PAPER = (f"#0{digit}0{digit}0{digit}" for digit in range(1, 9))
_VARIABLES = {
    MUTED: "var(--muted)", FAINT: "var(--rule)", BLUE: "var(--blue)", ORANGE: "var(--orange)", TEAL: "var(--teal)",
    PINK: "var(--pink)", INK: "var(--ink)", PAPER: "var(--paper)",
}  # fmt: skip
SERIES = ((BLUE, "o", "-"), (ORANGE, "s", "--"), (TEAL, "^", "-."), (PINK, "D", ":"))
"""Colour, marker and line style of the first, second … series of a plot."""
ABOVE: dict[str, Any] = {
    "fontsize": 8.5, "loc": "lower right", "bbox_to_anchor": (1.0, 0.98), "ncols": 4, "borderpad": 0, "columnspacing": 1.2,
}  # fmt: skip
"""A legend beside the title, where it hides no point."""
_MARKED_BELOW = 40
_CSS_PX = 96  # an inch


@contextmanager
def page_figure(width: float, height: float) -> Iterator[Any]:
    """A matplotlib Figure of so many inches at 72 pixels, in the pages' style, to draw into and `to_svg` within the block."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_style()):
        yield Figure(figsize=(width, height), layout="constrained")


def to_svg(figure: Any, label: str, css: str = "") -> Markup:
    """The figure's <svg> element alone: no prolog, no metadata, no size of its own, and the page's colours and fonts.
    `label` is what screen readers say, `css` its class.
    """
    import matplotlib as mpl
    from markupsafe import Markup, escape

    buffer = io.StringIO()
    # Ids within an SVG are ids of the whole page: another label gives others.
    with mpl.rc_context({"svg.hashsalt": label}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r'font: ([\d.]+)px [^;"]*', r"font-size: \1px", body)
    body = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", body, count=1)
    body = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", body, count=1)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, variable)
    kind = f'class="{css}" ' if css else ""
    width = f'style="max-width: {round(_CSS_PX * figure.get_figwidth())}px" '  # larger, its letters outgrow the page's
    # Drawn by us from numbers; what users wrote in it was escaped by matplotlib.
    return Markup(body.replace("<svg ", f'<svg role="img" {kind}{width}aria-label="{escape(label)}" ', 1))  # noqa: S704


def plot_loss(points: Sequence[LossPoint], validation: Sequence[ValidationPoint] = ()) -> Markup:
    """Loss over optimizer steps, each point thin and their running mean bold; on it the loss on the held-out images, as
    squares, and on as many that were trained on, as triangles; below it the learning rate where known.

    Empty where there are fewer than two points.
    """
    import numpy as np
    from markupsafe import Markup

    if len(points) < 2:
        return Markup()

    steps, losses = [point.step for point in points], np.array([point.loss for point in points])
    rates = [(point.step, point.lr) for point in points if point.lr is not None]
    panels = 2 if len(rates) > 1 else 1
    marker = "o" if len(points) < _MARKED_BELOW else ""
    with page_figure(5.8, 2.4 if panels == 1 else 3.4) as figure:
        axes = figure.subplots(
            panels, 1, sharex=True, squeeze=False, height_ratios=[3, 1.2] if panels == 2 else [1]
        ).ravel()
        axes[0].plot(steps, losses, color=BLUE, linewidth=0.8, alpha=0.45, marker=marker, markersize=4)
        if len(points) >= _MARKED_BELOW:
            axes[0].plot(steps, running_mean(losses), color=BLUE, linewidth=2.2, label="trained on, as it went")
        _draw_validation(axes[0], validation)
        axes[0].set_ylabel("loss")
        if panels == 2:
            axes[1].plot(*zip(*rates, strict=True), color=MUTED, linewidth=2, marker=marker, markersize=4)
            axes[1].set_ylabel("learning rate")
            axes[1].yaxis.set_major_formatter(lambda rate, _: f"{rate:g}")
            axes[1].locator_params(axis="y", nbins=3)
        axes[-1].set_xlabel("optimizer step")
        axes[-1].xaxis.get_major_locator().set_params(integer=True)
        return to_svg(figure, "Loss over optimizer steps")


def _draw_validation(axes: Any, validation: Sequence[ValidationPoint]) -> None:
    if not validation:
        return
    at, held_out = [point.step for point in validation], [point.loss for point in validation]
    axes.plot(at, held_out, color=ORANGE, linewidth=1.6, linestyle="--", marker="s", markersize=5, label="held out")
    trained = [(point.step, point.train_loss) for point in validation if point.train_loss is not None]
    if trained:
        axes.plot(
            *zip(*trained, strict=True), color=TEAL, linewidth=1.6, linestyle="-.", marker="^", markersize=5,
            label="as many of the trained, measured alike",
        )  # fmt: skip
    axes.legend(fontsize=8)


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
        "text.parse_math": False,  # a prompt may hold dollars
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": FAINT,
        "axes.labelcolor": MUTED,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "axes.titlecolor": INK,
        "xtick.color": FAINT,
        "ytick.color": FAINT,
        "xtick.labelcolor": MUTED,
        "ytick.labelcolor": MUTED,
        "text.color": INK,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": FAINT,
        "grid.linewidth": 0.6,
        "hatch.color": INK,
        "hatch.linewidth": 0.8,
        "legend.frameon": False,
        "legend.labelcolor": INK,
    }
