"""Plots of several runs in one: losses over the steps, each measure over the epochs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from brushset.page.plots import ABOVE, SERIES, page_figure, running_mean, to_svg
from brushset.records import Candidate, Choice, Estimate, Trained

if TYPE_CHECKING:
    from markupsafe import Markup

_FEWEST_POINTS = 2
_MEASURES: tuple[tuple[str, Callable[[Candidate], Estimate]], ...] = (
    ("retention ρ of the style", lambda each: each.retention),
    ("CLIP score, to base", lambda each: each.fidelity),
    ("memorisation gap", lambda each: each.memorisation),
)


@dataclass(frozen=True)
class Traced:
    """A run in a plot: the letter that names it, and what it left."""

    letter: str
    trained: Trained | None
    choice: Choice | None


def overlay_plots(runs: Sequence[Traced]) -> list[Markup]:
    """Those that at least one run has points of."""
    plots = [_plot_losses(runs), _plot_validation(runs)]
    plots += [_plot_measure(runs, title, read) for title, read in _MEASURES]
    return [plot for plot in plots if plot]


def _plot_losses(runs: Sequence[Traced]) -> Markup | None:
    import numpy as np

    lines = [
        (each.letter, [point.step for point in each.trained.losses], [point.loss for point in each.trained.losses])
        if each.trained
        else (each.letter, [], [])
        for each in runs
    ]
    smooth = [
        (letter, steps, list(running_mean(np.array(losses))) if losses else []) for letter, steps, losses in lines
    ]
    return _plot("training loss, running mean", "optimizer step", smooth, marked=False)


def _plot_validation(runs: Sequence[Traced]) -> Markup | None:
    lines = []
    for each in runs:
        points = each.trained.validation if each.trained else ()
        lines.append((each.letter, [point.epoch for point in points], [point.loss for point in points]))
    return _plot("loss on held-out images", "epoch", lines, marked=True)


def _plot_measure(runs: Sequence[Traced], title: str, read: Callable[[Candidate], Estimate]) -> Markup | None:
    """At the weight that each run chose."""
    lines, bars = [], []
    for each in runs:
        own = [item for item in each.choice.candidates if item.weight == each.choice.weight] if each.choice else []
        points = [(item.epoch, read(item)) for item in sorted(own, key=lambda item: item.epoch)]
        known = [(epoch, found) for epoch, found in points if found.value is not None]
        lines.append((each.letter, [epoch for epoch, _ in known], [found.value or 0.0 for _, found in known]))
        bars.append([(epoch, found.low, found.high) for epoch, found in known if found.low is not None])
    return _plot(title, "epoch, at the weight chosen", lines, marked=True, bars=bars)


def _plot(
    title: str,
    across: str,
    lines: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    *,
    marked: bool,
    bars: Sequence[Sequence[tuple[int, float | None, float | None]]] = (),
) -> Markup | None:
    if all(len(at) < _FEWEST_POINTS for _, at, _ in lines):
        return None
    with page_figure(3.9, 2.5) as figure:
        axes = figure.subplots()
        for number, (letter, at, values) in enumerate(lines):
            if not at:
                continue
            colour, marker, style = SERIES[number % len(SERIES)]
            if number < len(bars) and bars[number]:
                axes.vlines(*zip(*bars[number], strict=True), color=colour, linewidth=2, alpha=0.4)
            axes.plot(
                at, values, color=colour, linestyle=style, linewidth=1.8, marker=marker if marked else "", markersize=5,
                label=letter,
            )  # fmt: skip
        axes.set_title(title)
        axes.set_xlabel(across)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(**ABOVE)
        return to_svg(figure, f"{title}, of each run", "small")
