"""Mixes as people write them, and as they act: names with weights, checked, labelled, and how strong they are together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from brushset.lora.compose import Options
from brushset.lora.compose.method import effective_weights
from brushset.lora.compose.progress import Schedule, parse_schedule
from brushset.lora.compose.view import Course
from brushset.lora.compose.view import Mix as WeightedMix
from brushset.lora.inspection import block_of
from brushset.lora.lowrank import Thin, inner
from brushset.lora.merge.weights import Weight

if TYPE_CHECKING:
    from brushset.generation.stack import Pairs

Mix = Sequence[tuple[str, float | str | Weight]]
"""Adapters by name with how strong each is: 0.6, or "0.6,text=0.3,up=0.8", or a schedule such as "0.8@0-0.5"."""


def read_mix(mix: Mix, options: Options) -> tuple[WeightedMix, Options]:
    """The mix with its weights read; what of it changes over the steps goes to the options.

    Raises:
        UsageError: a weight that is none.
    """
    weights: list[tuple[str, Weight]] = []
    schedules = dict(options.schedules)
    for name, given in mix:
        read = _read(given, f"{name}:{given}")
        if isinstance(read, Schedule):
            schedules[name] = read
            weights.append((name, read.peak))
        else:
            weights.append((name, read))
    return tuple(weights), dataclasses.replace(options, schedules=schedules)


def mix_label(mix: Mix) -> str:
    """`base`, `anime 0.8`, `anime 0.6 + watercolor 0.4`."""
    return " + ".join(f"{name} {_told(weight)}" for name, weight in mix) or "base"


def describe_strength(label: str, course: Course, steps: int, relative: float | None) -> str:
    """One line on how strong a mix of several adapters is. `relative` is of those that act at once, all the time."""
    total = math.fsum(effective_weights(course, steps).values())
    told = f"{label}: total strength {total:.3g}, the mean over the steps of the weights that act"
    if relative is None:
        return told
    return f"{told}; together they change the model by {relative:.2f} of what the strongest does alone at 1"


class Strengths:
    """How strongly mixes change the model, from inner products of the adapters' ΔW by block: each pair's are made once,
    whatever the weights. `models` are the adapters of UNet and of text encoder, by name.
    """

    def __init__(self, models: Sequence[Mapping[str, Pairs]]) -> None:
        self._models = models
        self._products: dict[tuple[str, str], Mapping[str, float]] = {}

    def relative(self, mix: WeightedMix) -> float:
        """‖Σ wᵢΔWᵢ‖ / maxᵢ ‖ΔWᵢ‖ (Frobenius), over all modules of UNet and text encoder; 0 where there is nothing.

        Where adapters agree it is the sum of their weights, where they have nothing in common √Σwᵢ² for equal norms.
        """
        squared = 0.0
        for name, weight in mix:
            for other, its_weight in mix:
                for module, product in self._of(name, other).items():
                    squared += weight.of(module) * its_weight.of(module) * product
        largest = max((sum(self._of(name, name).values()) for name, _ in mix), default=0.0)
        return math.sqrt(max(squared, 0.0) / largest) if largest else 0.0

    def forget(self) -> None:
        """For when an adapter has come or gone under a name."""
        self._products.clear()

    def _of(self, name: str, other: str) -> Mapping[str, float]:
        """One module of each block → Σ ⟨ΔW, ΔW'⟩ over the block's modules."""
        key = (name, other) if name <= other else (other, name)
        if key not in self._products:
            sums: dict[str, tuple[str, float]] = {}
            for adapters in self._models:
                one, two = (adapters.get(each, {}) for each in key)
                for module in sorted(one.keys() & two.keys()):
                    first, so_far = sums.get(block_of(module), (module, 0.0))
                    sums[block_of(module)] = first, so_far + inner(_thin(one, module), _thin(two, module))
            self._products[key] = dict(sums.values())
        return self._products[key]


def _thin(pairs: Pairs, module: str) -> Thin:
    pair = pairs[module]
    return Thin(pair.up.double().flatten(1).cpu(), pair.down.double().flatten(1).cpu())


def _read(given: float | str | Weight, source: str) -> Weight | Schedule:
    if isinstance(given, Weight):
        return given
    read = parse_schedule(given if isinstance(given, str) else repr(float(given)), source)
    return read if read.constant is None else read.constant


def _told(weight: float | str | Weight) -> str:
    if isinstance(weight, Weight):
        return weight.told()
    return weight if isinstance(weight, str) else f"{weight:g}"
