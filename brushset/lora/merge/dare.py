"""DARE: drop entries at random and rescale the rest, then sum. Yu et al., arXiv 2311.03099, section 3.2.

    ΔW = Σᵢ wᵢ · mᵢ ∘ ΔWᵢ / (1 − p),  mᵢ,p ~ Bernoulli(1 − p),  density = 1 − p

which is Σ wᵢΔWᵢ on average; then the SVD to a rank, which takes most of the noise out again, since noise has no low
rank. The masks are drawn from the seed, the module and the adapter's hash: the order of the adapters does not matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from brushset.lora.lowrank import squared_norm, truncate_dense
from brushset.lora.merge.method import Merged, Term, Wanted, rank_of

if TYPE_CHECKING:
    import torch

DENSITY = 0.5  # dropping adds noise of p/(1 − p) times ΔW's energy: here as much as ΔW has itself


def dare(terms: Sequence[Term], wanted: Wanted) -> Merged:
    """The sum of what was not dropped, cut to a rank."""
    dense = drop_and_sum(terms, DENSITY if wanted.density is None else wanted.density, wanted.seed)
    held, energy = truncate_dense(dense, rank_of(terms, wanted))
    return Merged(held, squared_norm(dense), energy)


def drop_and_sum(terms: Sequence[Term], density: float, seed: int) -> torch.Tensor:
    """The paper's merged update of one module, [out, in], in float32."""
    import torch

    total = torch.zeros(terms[0].update.left.shape[0], terms[0].update.right.shape[1])
    for term in terms:
        kept = term.update.dense().mul_(kept_mask(term.key, total.shape, density, seed))
        total.add_(kept, alpha=term.weight / density)
    return total


def kept_mask(key: str, shape: Sequence[int], density: float, seed: int) -> torch.Tensor:
    """Which entries stay; the same for the same key and seed, on any machine."""
    import torch

    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(tuple(shape), generator=generator) < density
