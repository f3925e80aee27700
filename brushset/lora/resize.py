"""A LoRA at a lower rank: of each module's ΔW the largest singular directions are kept.

The SVD is taken of a rank × rank core, never of ΔW: B = Q₁R₁ and Aᵀ = Q₂R₂ by QR, then R₁R₂ᵀ = USVᵀ, so that
ΔW = (Q₁U) S (Q₂V)ᵀ. Both factors get √S, in float64, then the file's dtype; alpha becomes the new rank, so the scale is 1
and the strength as it was. `energy` is the share of ‖ΔW‖² that is kept: the most that any file of that rank can hold
(Eckart and Young, 1936).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from brushset.errors import UsageError
from brushset.lora.adapter import AdapterFile, Factors
from brushset.lora.convert import kohya_metadata
from brushset.lora.forms import to_kohya
from brushset.lora.inspection import block_of, block_order
from brushset.lora.lowrank import decompose, thin
from brushset.lora.save import save_adapter

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Resized:
    """One module's ranks and the share of its energy that is left. A module of zeros keeps all of nothing."""

    rank_before: int
    rank_after: int
    energy: float
    squared_norm: float


@dataclass(frozen=True)
class ResizeReport:
    """Kohya name → what became of it."""

    modules: Mapping[str, Resized]

    @property
    def energy(self) -> float:
        """The share of all modules' energy together."""
        whole = sum(module.squared_norm for module in self.modules.values())
        kept = sum(module.squared_norm * module.energy for module in self.modules.values())
        return kept / whole if whole else 1.0

    def by_block(self) -> dict[str, tuple[float, float, float]]:
        """Block → (mean rank before, mean rank after, share of its energy kept)."""
        blocks: dict[str, list[Resized]] = {}
        for name, module in self.modules.items():
            blocks.setdefault(block_of(name), []).append(module)
        return {
            block: (
                sum(module.rank_before for module in members) / len(members),
                sum(module.rank_after for module in members) / len(members),
                ResizeReport(dict(enumerate(members))).energy,  # type: ignore[arg-type]
            )
            for block, members in sorted(blocks.items(), key=lambda item: block_order(item[0]))
        }


def resize(
    factors: Mapping[str, Factors], *, rank: int | None = None, energy: float | None = None
) -> tuple[dict[str, Factors], ResizeReport]:
    """Every module at `rank` at most, or at the least rank that keeps `energy` (0 < energy ≤ 1) of it.

    Raises:
        UsageError: neither, both, or a number that makes no sense.
    """
    if (rank is None) == (energy is None):
        raise UsageError("resize: name one of --rank and --energy")
    if rank is not None and rank < 1:
        raise UsageError(f"--rank {rank}: must be at least 1")
    if energy is not None and not 0 < energy <= 1:
        raise UsageError(f"--energy {energy}: a share above 0, at most 1")
    resized, report = {}, {}
    for name, factor in factors.items():
        resized[name], report[name] = _resize_module(factor, rank, energy)
    return resized, ResizeReport(report)


def write_resized(source: AdapterFile, factors: Mapping[str, Factors], report: ResizeReport, target: Path) -> None:
    """Writes a resized adapter in Kohya's form, with what became of it in the metadata."""
    ranks = {factor.rank for factor in factors.values()}
    alphas = {factor.alpha for factor in factors.values()}
    told = kohya_metadata(source)
    # "Dynamic" is sd-scripts' own word for ranks that differ (networks/resize_lora.py).
    told["ss_network_dim"] = str(ranks.pop()) if len(ranks) == 1 else "Dynamic"
    told["ss_network_alpha"] = str(alphas.pop()) if len(alphas) == 1 else "Dynamic"
    told["brushset.resize"] = f"energy {report.energy:.4f} kept of rank {max(source.ranks)}"
    save_adapter(target, to_kohya(factors), told)


def _resize_module(factor: Factors, rank: int | None, energy: float | None) -> tuple[Factors, Resized]:
    import torch

    left, core, right = decompose(thin(factor))
    squares = core.square()
    whole = squares.sum().item()
    kept = _least_rank(squares, energy) if energy is not None else min(rank or factor.rank, len(core))
    if kept >= factor.rank or not whole:  # nothing to gain: the very factors stay
        same = factor if whole else _cut(factor, kept)
        return same, Resized(factor.rank, same.rank, 1.0, whole)
    roots = core[:kept].sqrt()
    up, down = left[:, :kept] * roots, roots[:, None] * right[:kept]
    shrunk = Factors(
        down.reshape(kept, *factor.down.shape[1:]).to(factor.down.dtype).contiguous(),
        up.reshape(up.shape[0], kept, *factor.up.shape[2:]).to(factor.up.dtype).contiguous(),
        float(kept),
    )
    assert torch.isfinite(up).all()
    return shrunk, Resized(factor.rank, kept, squares[:kept].sum().item() / whole, whole)


def _least_rank(squares: torch.Tensor, energy: float) -> int:
    """How many of the falling squares are needed for a share of their sum; at least one."""
    import torch

    shares = squares.cumsum(0) / squares.sum().clamp_min(torch.finfo(squares.dtype).tiny)
    return min(int((shares < energy - 1e-6).sum().item()) + 1, len(squares))


def _cut(factor: Factors, rank: int) -> Factors:
    """A module of zeros at a lower rank, its scale kept."""
    if rank >= factor.rank:
        return factor
    return Factors(factor.down[:rank].contiguous(), factor.up[:, :rank].contiguous(), factor.scale * rank)
