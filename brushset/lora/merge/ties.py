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

from brushset.lora.lowrank import truncate_dense
from brushset.lora.merge.method import Merged, Term, Wanted, rank_of

if TYPE_CHECKING:
    import torch

DENSITY = 0.2  # the paper's: the top 20 % carry the task


def ties(terms: Sequence[Term], wanted: Wanted) -> Merged:
    """What the adapters agree on, cut to a rank."""
    dense = elect(terms, DENSITY if wanted.density is None else wanted.density)
    held, energy = truncate_dense(dense, rank_of(terms, wanted))
    return Merged(held, dense.square().sum().item(), energy)


def elect(terms: Sequence[Term], density: float) -> torch.Tensor:
    """The paper's merged task vector of one module, [out, in]."""
    import torch

    trimmed = [trim(math.copysign(1.0, term.weight) * term.update.dense(), density) for term in terms]
    weights = [abs(term.weight) for term in terms]
    majority = torch.zeros_like(trimmed[0])
    for weight, update in zip(weights, trimmed, strict=True):
        majority += weight * update
    majority = majority.sign()
    total, mass = torch.zeros_like(majority), torch.zeros_like(majority)
    for weight, update in zip(weights, trimmed, strict=True):
        agrees = ((update.sign() == majority) & (majority != 0)).to(mass.dtype)
        total += weight * update * agrees
        mass += weight * agrees
    return sum(weights) * total / mass.clamp_min(torch.finfo(mass.dtype).tiny)


def trim(update: torch.Tensor, density: float) -> torch.Tensor:
    """The entries that are largest in magnitude, `density` of them, the others 0."""
    count = max(1, round(density * update.numel()))
    magnitude = update.abs()
    least = magnitude.flatten().kthvalue(update.numel() - count + 1).values
    return update * (magnitude >= least)
