"""The report's part on what was chosen: three numbers, the plane of epochs and weights, curves, and the grid of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from brushset.page.choice_plots import Curve, plot_curve, plot_losses, plot_plane, plot_scatter
from brushset.page.pictures import TILE_PX, spread, thumbnail
from brushset.records import Candidate, Cell, Choice, Estimate, EvalReport

if TYPE_CHECKING:
    from markupsafe import Markup

EPOCH_ROWS = 8
PROMPT_GRIDS = 4
_NUMBERS = (
    ("retention", "Style kept, ρ", 2, "0 is the base, 1 as alike as the references are to each other"),
    ("fidelity", "Prompt followed, to base", 2, "CLIP score, in points of 100, same prompts and seeds"),
    ("memorisation", "Memorisation gap", 3, "0 is right; above 0, images trained on come back"),
)
# The same numbers among the scores of a run that had nothing to choose from.
_SCORES = {
    "retention": ("retention_csd", "retention_clip"),
    "fidelity": ("clip_score_difference",),
    "memorisation": ("memorisation_gap",),
}


@dataclass(frozen=True)
class Number:
    """One of the three numbers on top."""

    title: str
    estimate: Estimate
    decimals: int
    about: str
    meaningful: bool


@dataclass(frozen=True)
class Tile:
    """A picture of one candidate at one place; `state` is "chosen", "outside" or "within"."""

    uri: str
    alt: str
    state: str


@dataclass(frozen=True)
class EpochRow:
    """One epoch's pictures, by weight."""

    epoch: int
    tiles: tuple[Tile | None, ...]


@dataclass(frozen=True)
class PromptGrid:
    """One prompt at one seed: the baselines, then epochs × weights."""

    prompt: str
    seed: int
    baselines: tuple[tuple[str, str], ...]
    weights: tuple[float, ...]
    rows: tuple[EpochRow, ...]


@dataclass(frozen=True)
class ChoicePart:
    """What the page shows of a choice; plots are empty where there is nothing to draw."""

    choice: Choice
    plane: Markup | str
    scatter: Markup | str
    curves: tuple[Markup, ...]
    grids: tuple[PromptGrid, ...]
    epochs_left_out: int

    @property
    def table(self) -> list[Candidate]:
        """The candidates, those measured most and keeping most first."""
        return sorted(
            self.choice.candidates, key=lambda each: (-each.round, -(each.retention.value or -9.0), each.epoch)
        )


def choice_part(choice: Choice | None, root: Path) -> ChoicePart | None:
    """None where there was nothing to choose from, or nothing measured and no picture kept."""
    if choice is None or not (choice.candidates or choice.losses):
        return None
    candidates = choice.candidates
    plane = any(each.retention.value is not None for each in candidates) and len(candidates) > 1
    both = sum(None not in (each.fidelity.value, each.retention.value) for each in candidates)
    grids, left_out = _grids(choice, root)
    return ChoicePart(
        choice=choice,
        plane=plot_plane(choice) if plane else "",
        scatter=plot_scatter(choice) if both > 1 else "",
        curves=tuple(_curves(choice)),
        grids=grids,
        epochs_left_out=left_out,
    )


def headline_numbers(choice: Choice | None, evaluation: EvalReport, main: Cell | None) -> list[Number]:
    """Of what was chosen: on the prompts it was not chosen by, where there are such; else from the scores."""
    picked = None
    if choice is not None and choice.decided_by == "retention":
        picked = choice.reported or choice.picked()
    if picked is not None and choice is not None:
        return [
            Number(title, getattr(picked, field), decimals, about, choice.meaningful)
            for field, title, decimals, about in _NUMBERS
        ]
    return [_scored(evaluation, main, each) for each in _NUMBERS]


def _scored(evaluation: EvalReport, main: Cell | None, number: tuple[str, str, int, str]) -> Number:
    field, title, decimals, about = number
    name = main.name if main else ""
    found = [
        score
        for metric in _SCORES[field]
        for score in evaluation.scores
        if (score.metric, score.cell) == (metric, name)
    ]
    best = next((score for score in found if score.value is not None), found[0] if found else None)
    if best is None:
        nothing = Estimate(value=None, note="not measured in this run")
        return Number(title, nothing, decimals, about, meaningful=True)
    estimate = Estimate(value=best.value, low=best.low, high=best.high, note=best.note)
    return Number(title, estimate, decimals, about, meaningful=best.meaningful or best.value is None)


def _curves(choice: Choice) -> list[Markup]:
    own = sorted((each for each in choice.candidates if each.weight == choice.weight), key=lambda each: each.epoch)
    bounds = choice.bounds
    curves = [
        Curve("retention ρ of the style", [(each.epoch, each.retention) for each in own], None, 0.3),
        Curve("CLIP score, to base", [(each.epoch, each.fidelity) for each in own], bounds.get("min_fidelity"), 1.0),
        Curve(
            "memorisation gap", [(each.epoch, each.memorisation) for each in own], bounds.get("max_memorisation"), 0.02
        ),
        Curve(
            "diversity, by the base's", [(each.epoch, each.diversity) for each in own], bounds.get("min_diversity"), 0.2
        ),
    ]
    drawn = [
        plot_curve(curve, choice.epoch)
        for curve in curves
        if sum(each.value is not None for _, each in curve.points) > 1
    ]
    return drawn + ([plot_losses(choice.losses, choice.epoch)] if len(choice.losses) > 1 else [])


def _grids(choice: Choice, root: Path) -> tuple[tuple[PromptGrid, ...], int]:
    """A grid a prompt, and how many epochs they leave out; the chosen epoch is always among those shown."""
    pictured = [each for each in choice.candidates if each.samples]
    epochs = sorted({each.epoch for each in pictured})
    shown = sorted({*spread(epochs[::-1], EPOCH_ROWS), *({choice.epoch} & set(epochs))})
    weights = tuple(sorted({each.weight for each in pictured}))
    by_place = {(each.epoch, each.weight): each for each in pictured}
    seed = choice.seeds[0] if choice.seeds else 0
    grids = tuple(
        PromptGrid(
            prompt=prompt,
            seed=seed,
            baselines=tuple(_baselines(choice, number, root)),
            weights=weights,
            rows=tuple(
                EpochRow(epoch, tuple(_tile(choice, by_place.get((epoch, weight)), number, root) for weight in weights))
                for epoch in shown
            ),
        )
        for number, prompt in enumerate(choice.shown_prompts[:PROMPT_GRIDS])
        if pictured
    )
    return grids, len(epochs) - len(shown)


def _baselines(choice: Choice, number: int, root: Path) -> list[tuple[str, str]]:
    words: Sequence[str] = choice.words.samples if choice.words else ()
    return [
        (title, thumbnail(root / samples[number], TILE_PX))
        for title, samples in (("base", choice.base_samples), ("base + style words", words))
        if number < len(samples)
    ]


def _tile(choice: Choice, each: Candidate | None, number: int, root: Path) -> Tile | None:
    if each is None or number >= len(each.samples):
        return None
    chosen = (each.epoch, each.weight) == (choice.epoch, choice.weight)
    state = "chosen" if chosen else "outside" if each.feasible is False else "within"
    alt = f"epoch {each.epoch} at weight {each.weight:g}{', chosen' if chosen else ''}"
    return Tile(thumbnail(root / each.samples[number], TILE_PX), alt, state)
