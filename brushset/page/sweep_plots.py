"""A sweep's plots: every run as a line through its settings, and the score over each setting."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from brushset.page.plots import BLUE, INK, MUTED, ORANGE, PAPER, page_figure, to_svg
from brushset.sweeps.ranking import Ranked
from brushset.sweeps.space import short_value

if TYPE_CHECKING:
    from markupsafe import Markup

_BEST = 3
_LOG_FROM = 8.0  # times its least value; and most values lie low, as they do where every octave is drawn as often
_MOST_LEVELS = 8


class _Axis:
    """Where the values of one setting lie, from 0 to 1. Words, and few numbers, are evenly apart."""

    def __init__(self, values: Sequence[Any]) -> None:
        different = {str(value): value for value in values}
        self._named = any(isinstance(value, bool) or not isinstance(value, int | float) for value in different.values())
        self._named = self._named or len(different) <= _MOST_LEVELS
        ordered = sorted(
            different.values(), key=lambda value: (isinstance(value, str), value if value is not None else 0)
        )
        self._places = {str(value): number for number, value in enumerate(ordered)}
        numbers = [float(value) for value in ordered] if not self._named else [0.0, 1.0]
        self._low, self._high = min(numbers), max(numbers)
        low_lying = statistics.median(numbers) <= (self._low + self._high) / 4
        self._log = not self._named and low_lying and 0 < self._low <= self._high / _LOG_FROM
        self._ordered = ordered

    def place(self, value: Any) -> float:
        """A value's."""
        if self._named:
            return self._places[str(value)] / max(1, len(self._places) - 1) if len(self._places) > 1 else 0.5
        low, high, at = (math.log(x) if self._log else x for x in (self._low, self._high, float(value)))
        return (at - low) / (high - low) if high > low else 0.5

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Places with what is written there."""
        if self._named:
            return [(self.place(value), short_value(value)) for value in self._ordered]
        middle = math.sqrt(self._low * self._high) if self._log else (self._low + self._high) / 2
        return [(self.place(value), f"{value:.2g}") for value in (self._low, middle, self._high)]


def plot_parallel(runs: Sequence[Ranked], varied: Sequence[str], measure: str, sign: float) -> Markup:
    """A line a run through its settings to its score, which is up where it is good; the best three bold. `runs` are the
    best first.
    """
    axes = {key: _Axis([each.settings.get(key) for each in runs]) for key in varied}
    scores = _score_places(runs)
    with page_figure(max(5.0, 1.55 * (len(varied) + 1)), 3.3) as figure:
        plot = figure.subplots()
        columns = range(len(varied) + 1)
        for number, (run, score) in reversed(list(enumerate(zip(runs, scores, strict=True)))):
            heights = [*(axes[key].place(run.settings.get(key)) for key in varied), score]
            best = number < _BEST
            plot.plot(
                columns, heights, color=ORANGE if best else BLUE, linewidth=2.2 if best else 0.9,
                alpha=1.0 if best else 0.45, linestyle="-" if best else "--", zorder=3 if best else 2,
                marker="o" if best else "", markersize=4,
            )  # fmt: skip
        for column, key in enumerate(varied):
            _draw_axis(plot, column, axes[key].ticks)
        values = [sign * float(each.value or 0.0) for each in runs]
        down, up = sorted((min(values), max(values)), reverse=sign < 0)
        _draw_axis(plot, len(varied), [(0.0, f"{down:.3f}"), (1.0, f"{up:.3f}")])
        plot.set_xticks(
            list(columns),
            [*(key.rpartition(".")[2].replace("_", "\n") for key in varied), measure.replace(" ", "\n", 1)],
        )
        _bare(plot)
        return to_svg(figure, "Each run as a line through its settings to its score")


def plot_setting(key: str, runs: Sequence[Ranked], measure: str, sign: float) -> Markup | str:
    """The score of every run over one setting, and the mean where several share a value; empty below two runs."""
    if len(runs) < 2 or len({str(each.settings.get(key)) for each in runs}) < 2:
        return ""
    axis = _Axis([each.settings.get(key) for each in runs])
    groups: dict[float, list[float]] = {}
    for each in runs:
        groups.setdefault(axis.place(each.settings.get(key)), []).append(sign * float(each.value or 0.0))
    with page_figure(3.6, 2.3) as figure:
        plot = figure.subplots()
        for place, values in groups.items():
            plot.plot([place] * len(values), values, color=BLUE, marker="o", markersize=5, linestyle="none", alpha=0.7)
        means = sorted((place, sum(values) / len(values)) for place, values in groups.items())
        if any(len(values) > 1 for values in groups.values()):
            plot.plot(
                *zip(*means, strict=True), color=ORANGE, linewidth=1.8, marker="_", markersize=16, markeredgewidth=2.4
            )
        plot.set_xticks([place for place, _ in axis.ticks], [text for _, text in axis.ticks])
        plot.set_xlim(-0.12, 1.12)
        plot.set_xlabel(key)
        plot.set_ylabel(measure)
        plot.locator_params(axis="y", nbins=5)
        return to_svg(figure, f"{measure} over {key}", "small")


def _score_places(runs: Sequence[Ranked]) -> list[float]:
    values = [float(each.value or 0.0) for each in runs]
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high > low else 0.5 for value in values]


def _draw_axis(plot: Any, column: int, ticks: Sequence[tuple[float, str]]) -> None:
    plot.axvline(column, color=MUTED, linewidth=1.0, zorder=1)
    for place, text in ticks:
        plot.annotate(
            text, (column, place), xytext=(5, 0), textcoords="offset points", fontsize=8.5, va="center", color=INK,
            zorder=5, bbox={"boxstyle": "square,pad=0.15", "facecolor": PAPER, "edgecolor": "none", "alpha": 0.8},
        )  # fmt: skip


def _bare(plot: Any) -> None:
    plot.set_yticks([])
    plot.grid(visible=False)
    plot.spines["left"].set_visible(False)
    plot.spines["bottom"].set_visible(False)
    plot.tick_params(length=0)
    plot.set_ylim(-0.06, 1.06)
    plot.margins(x=0.09)
