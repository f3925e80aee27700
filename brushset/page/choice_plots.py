"""Plots of a choice: the plane of epochs and weights, style against prompt, and each measure over the epochs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from brushset.page.plots import BLUE, FAINT, INK, MUTED, ORANGE, PAPER, SERIES, page_figure, to_svg
from brushset.page.template import fixed
from brushset.records import Candidate, Choice, EpochLoss, Estimate

if TYPE_CHECKING:
    from markupsafe import Markup

MARKS = {"style": "S", "fidelity": "F", "diversity": "D", "memorisation": "M"}
"""What an infeasible cell of the plane breaks."""
_HATCH = "////"
_DARK_BELOW = 0.55  # of viridis: white text is read on it
_LEAST_SPAN = 0.2  # of the plane's colours: smaller differences are not blown up to the whole range


@dataclass(frozen=True)
class Curve:
    """One measure over the epochs: its points, and a bound where there is one. Its axis spans `least_span` at least, so that
    noise does not look like a course.
    """

    title: str
    points: Sequence[tuple[int, Estimate]]
    bound: float | None = None
    least_span: float = 0.0


def plot_plane(choice: Choice) -> Markup:
    """Epochs across, weights up; colour and number are the retention. The chosen cell is framed; a cell outside the bounds
    is hatched, with the letters of what it breaks.
    """
    epochs = sorted({each.epoch for each in choice.candidates})
    weights = sorted({each.weight for each in choice.candidates})
    values = [each.retention.value for each in choice.candidates if each.retention.value is not None]
    low = min([0.0, *values])
    high = max([low + _LEAST_SPAN, *values])
    with page_figure(1.3 + 0.62 * len(epochs), 1.0 + 0.62 * len(weights)) as figure:
        axes = figure.subplots()
        for each in choice.candidates:
            _draw_cell(axes, (epochs.index(each.epoch), weights.index(each.weight)), each, (low, high))
        if choice.epoch in epochs and choice.weight in weights:
            at = (epochs.index(choice.epoch), weights.index(choice.weight))
            for colour, width in ((PAPER, 6.0), (ORANGE, 3.5)):
                _rectangle(axes, at, fill=False, edgecolor=colour, linewidth=width, zorder=5)
        axes.set_xlim(-0.53, len(epochs) - 0.47)
        axes.set_ylim(-0.53, len(weights) - 0.47)
        axes.set_xticks(range(len(epochs)), [str(epoch) for epoch in epochs])
        axes.set_yticks(range(len(weights)), [f"{weight:g}" for weight in weights])
        axes.set_xlabel("epoch")
        axes.set_ylabel("weight")
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        return to_svg(figure, "Retention of the style by epoch and weight, the chosen cell framed", "plane")


def plot_scatter(choice: Choice) -> Markup:
    """How much of the prompt is kept, across, against how much of the style: candidates with their intervals, the Pareto
    line, the base at 0 and the base with style words.
    """
    shown = [each for each in choice.candidates if None not in (each.fidelity.value, each.retention.value)]
    weights = sorted({each.weight for each in shown})
    with page_figure(5.6, 4.0) as figure:
        axes = figure.subplots()
        for number, weight in enumerate(weights):
            _draw_candidates(axes, [each for each in shown if each.weight == weight], number, f"at {weight:g}")
        front = sorted((each for each in shown if each.on_front), key=lambda each: each.fidelity.value or 0.0)
        if len(front) > 1:
            path = [(each.fidelity.value, each.retention.value) for each in front]
            axes.plot(*zip(*path, strict=True), color=INK, linewidth=1.2, label="Pareto line", zorder=2)
        axes.plot([0], [0], color=INK, marker="P", markersize=9, linestyle="none", label="base")
        words = choice.words
        if words and None not in (at := (words.fidelity.value, words.retention.value)):
            _draw_errors(axes, words, INK)
            axes.plot(*at, color=INK, marker="X", markersize=9, linestyle="none", label="base + style words")
        _mark_chosen(axes, choice, shown)
        if "min_fidelity" in choice.bounds:
            axes.axvline(choice.bounds["min_fidelity"], color=MUTED, linewidth=1, linestyle="--")
        axes.set_xlabel("CLIP score, difference to base (right: follows the prompt better)")
        axes.set_ylabel("retention ρ of the style")
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, columnspacing=1.2)
        return to_svg(figure, "Style kept against prompt followed, with 95 % intervals")


def plot_curve(curve: Curve, chosen: int) -> Markup:
    """A measure over the epochs with its 95 % intervals; dashed its bound, orange the chosen epoch."""
    with page_figure(3.9, 2.3) as figure:
        axes = figure.subplots()
        axes.axvline(chosen, color=ORANGE, linewidth=6, alpha=0.25)
        points = [(epoch, each) for epoch, each in curve.points if each.value is not None]
        bars = [(epoch, each.low, each.high) for epoch, each in points if each.low is not None]
        axes.vlines(*zip(*bars, strict=True), color=BLUE, linewidth=2, alpha=0.55) if bars else None
        axes.plot(
            [epoch for epoch, _ in points], [each.value for _, each in points],
            color=BLUE, linewidth=1.8, marker="o", markersize=5,
        )  # fmt: skip
        if curve.bound is not None:
            axes.axhline(curve.bound, color=MUTED, linewidth=1.2, linestyle="--")
        _finish(axes, curve.title)
        low, high = axes.get_ylim()
        if missing := max(0.0, curve.least_span - (high - low)) / 2:
            axes.set_ylim(low - missing, high + missing)
        return to_svg(figure, f"{curve.title} over the epochs", "small")


def plot_losses(losses: Sequence[EpochLoss], chosen: int) -> Markup:
    """The loss on images never trained on, and on as many that were: what lies between is learned by heart."""
    with page_figure(3.9, 2.3) as figure:
        axes = figure.subplots()
        axes.axvline(chosen, color=ORANGE, linewidth=6, alpha=0.25)
        trained = [(each.epoch, each.trained) for each in losses if each.trained is not None]
        held_out = [(each.epoch, each.held_out) for each in losses]
        for (colour, marker, line), points, label in zip(
            SERIES, (held_out, trained), ("held out", "trained on"), strict=False
        ):
            if points:
                axes.plot(
                    *zip(*points, strict=True), color=colour, marker=marker, linestyle=line, markersize=5, label=label
                )
        axes.legend(fontsize=8)
        _finish(axes, "loss, same steps and noise")
        return to_svg(figure, "Loss on held-out and on trained images over the epochs", "small")


def _finish(axes: Any, title: str) -> None:
    axes.set_title(title)
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.margins(x=0.06)


def _draw_cell(axes: Any, at: tuple[int, int], each: Candidate, span: tuple[float, float]) -> None:
    import matplotlib as mpl

    value = each.retention.value
    if value is None:
        _rectangle(axes, at, facecolor="none", edgecolor=FAINT)
        axes.text(*at, "–", ha="center", va="center", color=MUTED)
        return
    share = (value - span[0]) / (span[1] - span[0])
    colour = mpl.colormaps["viridis"](share)
    _rectangle(axes, at, facecolor=colour, edgecolor="none")
    ink = "#ffffff" if share < _DARK_BELOW else "#000000"
    if each.feasible is False:
        with mpl.rc_context({"hatch.color": ink}):
            _rectangle(axes, at, facecolor="none", edgecolor=ink, linewidth=0, hatch=_HATCH, alpha=0.45)
    letters = "".join(MARKS[name] for name in each.breaks)
    box = {"boxstyle": "round,pad=0.12", "facecolor": colour, "edgecolor": "none"}
    up = 0.1 if letters else 0.0
    axes.text(at[0], at[1] + up, fixed(value, 2), ha="center", va="center", color=ink, fontsize=10, bbox=box, zorder=6)
    if letters:
        axes.text(at[0], at[1] - 0.24, letters, ha="center", va="center", color=ink, fontsize=8, bbox=box, zorder=6)


def _rectangle(axes: Any, at: tuple[int, int], **look: Any) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((at[0] - 0.48, at[1] - 0.48), 0.96, 0.96, **look))


def _draw_candidates(axes: Any, shown: Sequence[Candidate], number: int, label: str) -> None:
    """One weight's candidates: hollow where they are outside the bounds."""
    colour, marker, _ = SERIES[number % len(SERIES)]
    axes.plot([], [], color=colour, marker=marker, linestyle="none", markersize=6.5, label=label)
    for each in shown:
        _draw_errors(axes, each, colour)
    for within, face in ((True, colour), (False, "none")):
        places = [
            (each.fidelity.value, each.retention.value) for each in shown if (each.feasible is not False) == within
        ]
        if places:
            axes.plot(
                *zip(*places, strict=True), color=colour, marker=marker, markerfacecolor=face, linestyle="none",
                markersize=6.5, zorder=3,
            )  # fmt: skip


def _draw_errors(axes: Any, each: Candidate, colour: str) -> None:
    x, y = each.fidelity, each.retention
    if x.low is not None and y.value is not None:
        axes.hlines(y.value, x.low, x.high, color=colour, linewidth=1.2, alpha=0.4)
    if y.low is not None and x.value is not None:
        axes.vlines(x.value, y.low, y.high, color=colour, linewidth=1.2, alpha=0.4)


def _mark_chosen(axes: Any, choice: Choice, shown: Sequence[Candidate]) -> None:
    for each in shown:
        if (each.epoch, each.weight) == (choice.epoch, choice.weight):
            at = (each.fidelity.value, each.retention.value)
            axes.plot(
                *at, color=INK, marker="o", markersize=15, markerfacecolor="none", markeredgewidth=2, linestyle="none"
            )
            axes.annotate(
                f"epoch {each.epoch} at {each.weight:g}", at, xytext=(12, 10), textcoords="offset points", fontsize=9,
                fontweight="bold", color=INK,
            )  # fmt: skip
