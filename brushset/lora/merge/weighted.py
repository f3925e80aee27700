"""Weighted sum: ΔW = Σ wᵢΔWᵢ, at the least rank that holds it.

Task arithmetic (Ilharco et al., "Editing Models with Task Arithmetic", arXiv 2212.04089, eq. 1), on ΔW. The sum's SVD
by the QR trick drops what is numerically nothing, so that epochs of one training, or adapters that share directions,
make a smaller file than side by side; nothing else is lost.
"""

from __future__ import annotations

from collections.abc import Sequence

from brushset.lora.lowrank import truncate
from brushset.lora.merge.method import Merged, Term, Wanted, weighted_sum


def weighted(terms: Sequence[Term], _wanted: Wanted) -> Merged:
    """The sum, at its own rank."""
    update = weighted_sum(terms)
    held, energy = truncate(update, update.rank)
    return Merged(held, update.squared_norm, energy)
