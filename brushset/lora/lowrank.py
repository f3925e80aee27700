"""ΔW = left · right as two thin matrices in float64: products, norms and SVDs that never form ΔW.

With U = [out, r] and D = [r, in] all is done on r × r matrices: ⟨U₁D₁, U₂D₂⟩ = Σ (U₁ᵀU₂) ∘ (D₁D₂ᵀ), and by QR of U
and Dᵀ the SVD of a product is that of its core R₁R₂ᵀ. A kernel's places stand side by side in the columns.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from brushset.lora.adapter import Factors

if TYPE_CHECKING:
    import torch

_ZERO = 1e-10  # singular values below this share of the largest are float64's noise: two equal updates have it


@dataclass(frozen=True)
class Thin:
    """One update, the strength in it: left [out, r], right [r, in], float64."""

    left: torch.Tensor
    right: torch.Tensor

    @property
    def rank(self) -> int:
        return int(self.right.shape[0])

    @functools.cached_property
    def squared_norm(self) -> float:
        """‖ΔW‖² (Frobenius)."""
        return max(inner(self, self), 0.0)

    def times(self, weight: float) -> Thin:
        return Thin(weight * self.left, self.right)

    def dense(self) -> torch.Tensor:
        """ΔW itself, [out, in], in float32: what is done entry by entry is rounded to a file's float32 in the end, and
        takes half the time.
        """
        return self.left.float() @ self.right.float()


def thin(factor: Factors) -> Thin:
    """A file's factors, alpha/rank folded in."""
    return Thin(factor.scale * factor.up.double().flatten(1), factor.down.double().flatten(1))


def to_factors(update: Thin, like: Factors, dtype: torch.dtype) -> Factors:
    """The update in the shapes of a module's factors; alpha is the rank, so the scale is 1."""
    down = update.right.reshape(update.rank, *like.down.shape[1:])
    up = update.left.reshape(-1, update.rank, *like.up.shape[2:])
    return Factors(down.to(dtype).contiguous(), up.to(dtype).contiguous(), float(update.rank))


def inner(one: Thin, other: Thin) -> float:
    """⟨ΔW₁, ΔW₂⟩ (Frobenius)."""
    return float(((one.left.T @ other.left) * (one.right @ other.right.T)).sum().item())


def stack(updates: Sequence[Thin]) -> Thin:
    """The sum of updates, exactly: their columns and rows side by side."""
    import torch

    return Thin(torch.cat([each.left for each in updates], dim=1), torch.cat([each.right for each in updates]))


def distance(one: Thin, other: Thin) -> float:
    """‖ΔW₁ − ΔW₂‖, from the QR of both together: differences of squared norms would lose half the digits."""
    import torch

    both = stack([one, other.times(-1.0)])
    core = torch.linalg.qr(both.left).R @ torch.linalg.qr(both.right.T).R.T
    return float(core.norm().item())


def decompose(update: Thin) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ΔW = left · diag(core) · right: orthonormal columns [out, k], falling core [k], orthonormal rows [k, in]."""
    import torch

    q_left, r_left = torch.linalg.qr(update.left)
    q_right, r_right = torch.linalg.qr(update.right.T)
    left, core, right = torch.linalg.svd(r_left @ r_right.T, full_matrices=False)
    return q_left @ left, core, right @ q_right.T


def true_rank(core: torch.Tensor) -> int:
    """How many singular values are more than noise; 0 for an update of zeros."""
    return int((core > _ZERO * core[0]).sum().item()) if core[0] else 0


def truncate(update: Thin, rank: int) -> tuple[Thin, float]:
    """The best approximation of a rank (Eckart and Young, 1936), and the share of ‖ΔW‖² that it keeps."""
    left, core, right = decompose(update)
    kept = max(1, min(rank, true_rank(core)))
    roots, whole = core[:kept].sqrt(), core.square().sum().item()
    share = core[:kept].square().sum().item() / whole if whole else 1.0
    return Thin(left[:, :kept] * roots, roots[:, None] * right[:kept]), share


def truncate_dense(dense: torch.Tensor, rank: int) -> tuple[Thin, float]:
    """The same for a whole ΔW [out, in]: projected on the leading eigenvectors of its smaller Gram matrix, of which only
    those are computed (LAPACK's syevr; all of them would take six times as long at a width of 1280).
    """
    import torch
    from scipy.linalg import eigh

    if dense.shape[0] > dense.shape[1]:
        flipped, share = truncate_dense(dense.T, rank)
        return Thin(flipped.right.T, flipped.left.T), share
    width = len(dense)
    leading = (width - min(rank, width), width - 1)
    _, vectors = eigh((dense @ dense.T).numpy(), subset_by_index=leading, driver="evr", check_finite=False)
    basis = torch.linalg.qr(torch.from_numpy(vectors)).Q  # they are orthonormal to 1e-5 alone
    right = (basis.T @ dense).double()
    whole = squared_norm(dense)
    share = min(1.0, squared_norm(right) / whole) if whole else 1.0
    roots = right.norm(dim=1).sqrt().clamp_min(math.sqrt(torch.finfo(torch.float32).tiny))
    return Thin(basis.double() * roots, right / roots[:, None]), share


def squared_norm(dense: torch.Tensor) -> float:
    """‖·‖² of a whole matrix, summed in float64."""
    import torch

    return float(torch.linalg.vector_norm(dense, dtype=torch.float64).item() ** 2)


def cosine(product: float, squared: float, other_squared: float) -> float:
    """Of an inner product and two squared norms; 0 where one is nothing."""
    size = math.sqrt(squared * other_squared)
    return max(-1.0, min(1.0, product / size)) if size else 0.0
