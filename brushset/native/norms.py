"""sd-scripts' scale_weight_norms: no layer's update of the base may grow beyond a norm ("max norm regularization")."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from brushset.native.lora import Adapter


def limit_norms(adapter: Adapter, limit: float) -> None:
    """Shrinks A and B of each layer alike until ‖alpha/r · BA‖ ≤ limit, in place, in full precision.

    ‖BA‖² is the sum over (BᵀB) ∘ (AAᵀ), so that no matrix larger than r x r is made. Nothing waits for the device.
    """
    for layer in adapter.layers.values():
        down, up = layer.down_master[adapter.row], layer.up_master[adapter.row]
        square = ((up.T @ up) * (down @ down.T)).sum().clamp(min=0.0)
        norm = (square.sqrt() * layer.scales[adapter.row]).clamp(min=limit / 2)
        factor = (norm.clamp(max=limit) / norm).sqrt()
        down.mul_(factor)
        up.mul_(factor)
