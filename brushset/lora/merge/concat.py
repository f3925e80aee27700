"""Concatenation: ΔW = Σ wᵢΔWᵢ by [w₁U₁ … wₙUₙ] · [D₁; …; Dₙ], of rank Σ rᵢ.

Block matrix multiplication, no approximation: the weights go into the up halves, linearly (sd-scripts'
`merge_lora.py --concat` puts their root into both halves and then multiplies them: 0.6 acts as 0.18, its issue 868).
Every down half stays bit by bit what it was.
"""

from __future__ import annotations

from collections.abc import Sequence

from brushset.lora.merge.method import Merged, Term, Wanted, weighted_sum


def concat(terms: Sequence[Term], _wanted: Wanted) -> Merged:
    """The factors side by side."""
    update = weighted_sum(terms)
    return Merged(update, update.squared_norm, 1.0)
