"""What every merge method is: a function of one module's updates, with their weights, to one update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from brushset.lora.lowrank import Thin, stack


@dataclass(frozen=True)
class Term:
    """One adapter's part in one module. `key` names both, whatever the order: what is random is drawn from it."""

    key: str
    weight: float
    update: Thin


@dataclass(frozen=True)
class Wanted:
    """What a method may be told. `rank` None: the largest of the module's; `density`: the share of entries kept."""

    rank: int | None = None
    density: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class Merged:
    """A module's merged update, and what it was cut from: ‖·‖² of the method's full result, and the share kept."""

    update: Thin
    squared_norm: float
    energy: float


@dataclass(frozen=True)
class Method:
    """`exact`: the result is Σ wᵢΔWᵢ itself. `density`: the default, None where the method has none."""

    merge: Callable[[Sequence[Term], Wanted], Merged]
    exact: bool
    density: float | None = None


def weighted_sum(terms: Sequence[Term]) -> Thin:
    """Σ wᵢΔWᵢ."""
    return stack([term.update.times(term.weight) for term in terms])


def rank_of(terms: Sequence[Term], wanted: Wanted) -> int:
    """The rank asked for, or the largest that goes in."""
    return wanted.rank or max(term.update.rank for term in terms)
