"""Which cells are sampled, and of which prompts and seeds: the plan of the grid.

Same prompt and seed in every cell, so that differences pair: what one looks at is the adapter, not the luck of a seed.
Triggers stand first in the prompts of the cells whose adapters they call, and in no others; but for the two cells that
ask what the trigger is good for. A baseline has the style's name in their place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from brushset.captions.style_words import strip_style_words
from brushset.generator import mix_label
from brushset.partners import Partner
from brushset.records import CellRole
from brushset.spec import EvaluateSection, StyleSpec
from eval.mixing.shares import Ingredient, method_weights, weights_of

_FULL_WEIGHT = 1.0  # what a style's retention in a mix is held against
_DECIMALS = 4  # 1 - 0.7 is 0.30000000000000004


@dataclass(frozen=True)
class PlannedCell:
    """A cell before it is sampled. `addition` tells it from another of the same mix; `triggers` stand before the prompt.
    `method` composes the adapters; `shares` are those that the weights of a mix were made of.
    """

    mix: tuple[tuple[str, float], ...]
    triggers: tuple[str, ...]
    role: CellRole
    addition: str = ""
    shown: bool = True
    method: str = "weighted"
    shares: tuple[float, ...] = ()

    @property
    def name(self) -> str:
        """What heads the cell's column: "cartoon 0.5 + anime 0.5", "cartoon 0.8, no trigger"."""
        return mix_label(self.mix) + self.addition

    @property
    def folder(self) -> str:
        """The name without what a shell would stumble over: "cartoon_0.5+anime_0.5"."""
        return self.name.replace(" + ", "+").replace(",", "").replace(" ", "_")

    def prompt(self, content: str) -> str:
        """The content with the triggers in front."""
        return ", ".join([*self.triggers, content])


BASE_CELL = PlannedCell((), (), "base")
"""The bare base."""


@dataclass(frozen=True)
class Place:
    """A row of the grid: one prompt with one seed."""

    prompt_index: int
    prompt: str
    seed: int

    @property
    def file(self) -> str:
        """The image's name in every cell's folder."""
        return f"{self.prompt_index}_{self.seed}.png"


def plan_cells(spec: StyleSpec, partners: Sequence[Partner]) -> list[PlannedCell]:
    """The cells in the order in which they are shown: baselines, the adapter alone, the pairs; then those that are only
    measured.
    """
    own = own_ingredient(spec)
    first = [
        BASE_CELL,
        words_cell(spec),
        _alone(spec.name, spec.trigger, spec.evaluate.weight, shown=True),
        *(mix_cell([own, ingredient(partner)], spec.evaluate.pair_weights, shown=True) for partner in partners),
    ]
    by_name: dict[str, PlannedCell] = {}
    for cell in (*first, *_weights(spec), *_triggers(spec, partners), *_for_mixes(spec, partners)):
        by_name.setdefault(cell.name, cell)
    return list(by_name.values())


def words_cell(spec: StyleSpec) -> PlannedCell:
    """The base told the style in words: the baseline to beat."""
    return PlannedCell((), (style_words(spec),), "words", " + style words")


def style_words(spec: StyleSpec) -> str:
    """What the base is told instead of a trigger."""
    named = f"{spec.name.replace('_', ' ').replace('-', ' ')} style"
    return spec.evaluate.style_words if spec.evaluate.style_words is not None else named


def plain_prompt(prompt: str, spec: StyleSpec) -> str:
    """A prompt as CLIP reads it for a score: without trigger and style words; as it stands where nothing else is in it."""
    words = (*spec.caption.all_style_words, spec.trigger, style_words(spec))
    return strip_style_words(prompt, words).text or prompt


def _weights(spec: StyleSpec) -> Iterator[PlannedCell]:
    for weight in spec.evaluate.weights:
        yield _alone(spec.name, spec.trigger, weight)


def _triggers(spec: StyleSpec, partners: Sequence[Partner]) -> Iterator[PlannedCell]:
    if not spec.evaluate.trigger_cells:
        return
    own = ((spec.name, spec.evaluate.weight),)
    yield PlannedCell(own, (), "no trigger", ", no trigger", shown=False)
    for other in partners[:1]:
        yield PlannedCell(own, (other.trigger,), "wrong trigger", f", trigger of {other.style}", shown=False)


def _for_mixes(spec: StyleSpec, partners: Sequence[Partner]) -> Iterator[PlannedCell]:
    """What a mix is held against: every style alone at full weight and at its weight in the mix; and other shares."""
    own = own_ingredient(spec)
    for partner in partners:
        other = ingredient(partner)
        even = mix_cell([own, other], spec.evaluate.pair_weights)
        for each, (_, weight) in zip((own, other), even.mix, strict=True):
            yield _alone(each.style, each.trigger, weight)
            yield _alone(each.style, each.trigger, _FULL_WEIGHT)
        for share in spec.evaluate.pair_sweep:
            yield mix_cell([own, other], (share, round(1 - share, _DECIMALS)))


def own_ingredient(spec: StyleSpec) -> Ingredient:
    """This style as a part of mixes."""
    return Ingredient(spec.name, spec.trigger, spec.evaluate.weight)


def ingredient(partner: Partner) -> Ingredient:
    """Another style as a part of mixes."""
    return Ingredient(partner.style, partner.trigger, partner.weight)


def mix_cell(
    parts: Sequence[Ingredient], shares: Sequence[float], *, method: str = "weighted", shown: bool = False
) -> PlannedCell:
    """A mix of these shares: "cartoon 0.5 + anime 0.5", "cartoon 0.8 + anime 0.8, switch"."""
    recommended = [part.weight for part in parts]
    weights = method_weights(method, weights_of(shares, recommended), recommended)
    mix = tuple((part.style, weight) for part, weight in zip(parts, weights, strict=True))
    addition = "" if method == "weighted" else f", {method}"
    return PlannedCell(
        mix, tuple(part.trigger for part in parts), "mix", addition, shown, method=method, shares=tuple(shares)
    )


def _alone(style: str, trigger: str, weight: float, *, shown: bool = False) -> PlannedCell:
    return PlannedCell(((style, weight),), (trigger,), "alone", shown=shown)


def grid_places(settings: EvaluateSection) -> list[Place]:
    """The rows: prompts in their order, under each its seeds."""
    return [
        Place(index, prompt, seed) for index, prompt in enumerate(settings.prompts) for seed in unique_seeds(settings)
    ]


def unique_seeds(settings: EvaluateSection) -> tuple[int, ...]:
    """The seeds in their order, each once."""
    return tuple(dict.fromkeys(settings.seeds))
