"""What a merged file holds of each adapter and how far it is from Σ wᵢΔWᵢ: measured on the file, without its making.

With M = Σ wᵢΔWᵢ and F the file's update, over all modules together:
    kept     ‖P_F ΔWᵢ Q_F‖² / ‖P_M ΔWᵢ Q_M‖², with the projections on F's and M's column and row spaces: of what the sum
             can hold of a style, the share that the file can; 1 where nothing was cut. Without shared directions the
             sum holds all of it; where two styles write what partly cancels, no file of their sum can.
    cosine   ⟨F, ΔWᵢ⟩ / (‖F‖ ‖ΔWᵢ‖)    beside the same for M, which is what the weights ask for
    error    ‖F − M‖ / ‖M‖
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from brushset.lora.adapter import Factors
from brushset.lora.lowrank import Thin, cosine, decompose, distance, inner, stack, thin, true_rank
from brushset.lora.merge.mix import Part, module_names

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class StyleShare:
    """One adapter in a merged file. `norm` is ‖wΔW‖, of the adapter at its weights."""

    name: str
    weight: str
    norm: float
    kept: float
    cosine: float
    wanted_cosine: float


@dataclass(frozen=True)
class MixReport:
    """A merged file's figures. `strength` is ‖F‖ over the largest ‖ΔWᵢ‖: what one style alone at 1 has."""

    styles: tuple[StyleShare, ...]
    error: float
    strength: float
    rank: int
    modules: int


@dataclass
class _Sums:
    """Of one adapter over all modules: squared norms of ΔW, of wΔW, and of what the spaces of F and M hold; products."""

    plain: float = 0.0
    weighted: float = 0.0
    held: float = 0.0
    holdable: float = 0.0
    with_file: float = 0.0
    with_sum: float = 0.0


@dataclass
class _Totals:
    file: float = 0.0
    wanted: float = 0.0
    gap: float = 0.0
    styles: dict[str, _Sums] = field(default_factory=dict)


def measure(parts: Sequence[Part], factors: Mapping[str, Factors]) -> MixReport:
    """Compares a merged file with what went in."""
    totals = _Totals(styles={part.name: _Sums() for part in parts})
    for name in module_names(parts):
        updates = {
            part.name: (part.weight.of(name), thin(part.adapter.factors[name]))
            for part in parts
            if name in part.adapter.factors
        }
        _add_module(totals, updates, thin(factors[name]) if name in factors else None)
    largest = max(sums.plain for sums in totals.styles.values())
    return MixReport(
        styles=tuple(_share(part, totals) for part in parts),
        error=math.sqrt(totals.gap / totals.wanted) if totals.wanted else 0.0,
        strength=math.sqrt(totals.file / largest) if largest else 0.0,
        rank=max(factor.rank for factor in factors.values()),
        modules=len(factors),
    )


def _add_module(totals: _Totals, updates: Mapping[str, tuple[float, Thin]], made: Thin | None) -> None:
    asked = stack([update.times(weight) for weight, update in updates.values()])
    spaces, whole = _spaces(made) if made else None, _spaces(asked)
    totals.wanted += asked.squared_norm
    totals.file += made.squared_norm if made else 0.0
    totals.gap += distance(made, asked) ** 2 if made else asked.squared_norm
    for name, (weight, update) in updates.items():
        sums = totals.styles[name]
        sums.plain += update.squared_norm
        sums.weighted += weight**2 * update.squared_norm
        sums.with_sum += inner(asked, update)
        sums.holdable += _held(update, whole)
        sums.held += _held(update, spaces)
        sums.with_file += inner(made, update) if made else 0.0


def _held(update: Thin, spaces: tuple[torch.Tensor, torch.Tensor] | None) -> float:
    """‖P ΔW Q‖²."""
    return Thin(spaces[0].T @ update.left, update.right @ spaces[1]).squared_norm if spaces else 0.0


def _spaces(update: Thin) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Orthonormal bases of what an update can write and read, [out, k] and [in, k]; None for one of zeros."""
    left, core, right = decompose(update)
    rank = true_rank(core)
    return (left[:, :rank], right[:rank].T) if rank else None


def _share(part: Part, totals: _Totals) -> StyleShare:
    sums = totals.styles[part.name]
    return StyleShare(
        name=part.name,
        weight=part.weight.told(),
        norm=math.sqrt(sums.weighted),
        kept=min(1.0, sums.held / sums.holdable) if sums.holdable else 1.0,
        cosine=cosine(sums.with_file, totals.file, sums.plain),
        wanted_cosine=cosine(sums.with_sum, totals.wanted, sums.plain),
    )
