"""TIES: trim, elect sign, merge those that agree. Yadav et al., arXiv 2306.01708, section 3.

Per module, with τᵢ = sgn(wᵢ)ΔWᵢ and entries p:
    trim    τ̂ᵢ   = τᵢ where |τᵢ,p| is among the largest share `density` of its module, else 0
    elect   γ_p  = sgn(Σᵢ |wᵢ| τ̂ᵢ,p)
    merge   ΔW_p = λ · Σ_{i: sgn(τ̂ᵢ,p) = γ_p} |wᵢ| τ̂ᵢ,p / Σ_{same i} |wᵢ|,  λ = Σᵢ |wᵢ|
then the SVD to a rank. With equal weights of sum 1 it is the paper's disjoint mean at λ = 1; with one adapter and
density 1 it is wΔW. The paper trims over the whole vector; here each module is trimmed by itself, so that memory is
bounded by the largest. A module that an adapter lacks counts as one of zeros, which have no vote.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from brushset.lora.lowrank import squared_norm, truncate_dense
from brushset.lora.merge.method import Merged, Term, Wanted, rank_of

if TYPE_CHECKING:
    import torch

DENSITY = 0.2  # the paper's: the top 20 % carry the task
_ENTRIES_AT_A_TIME = 1 << 17  # what stays in a core's cache over the dozen passes that electing takes


def ties(terms: Sequence[Term], wanted: Wanted) -> Merged:
    """What the adapters agree on, cut to a rank."""
    dense = elect(terms, DENSITY if wanted.density is None else wanted.density)
    held, energy = truncate_dense(dense, rank_of(terms, wanted))
    return Merged(held, squared_norm(dense), energy)


def elect(terms: Sequence[Term], density: float) -> torch.Tensor:
    """The paper's merged task vector of one module, [out, in], in float32."""
    import torch

    updates = [math.copysign(1.0, term.weight) * term.update.dense() for term in terms]
    least = [smallest_kept(update, density) for update in updates]
    weights = [abs(term.weight) for term in terms]
    rows = max(1, _ENTRIES_AT_A_TIME // updates[0].shape[1])
    parts = [
        _elect([_trim(part, limit) for part, limit in zip(parts, least, strict=True)], weights)
        for parts in zip(*(update.split(rows) for update in updates), strict=True)
    ]
    return torch.cat(parts)


def _elect(trimmed: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    import torch

    majority = torch.zeros_like(trimmed[0])
    for weight, update in zip(weights, trimmed, strict=True):
        majority.add_(update, alpha=weight)
    majority.sign_()
    total, mass = torch.zeros_like(majority), torch.zeros_like(majority)
    for weight, update in zip(weights, trimmed, strict=True):
        agrees = (update * majority > 0).to(update.dtype)
        total.add_(update * agrees, alpha=weight)
        mass.add_(agrees, alpha=weight)
    return total.mul_(sum(weights)).div_(mass.clamp_min_(torch.finfo(mass.dtype).tiny))


def _trim(update: torch.Tensor, least: float) -> torch.Tensor:
    return update * (update.abs() >= least)


def smallest_kept(update: torch.Tensor, density: float) -> float:
    """The magnitude from which on entries are among the largest share `density`."""
    count = max(1, round(density * update.numel()))
    return float(update.abs().flatten().kthvalue(update.numel() - count + 1).values.item())
