"""The product of a layer that is trained: y = x Wᵀ + b + alpha/r · (x Aᵀ) Bᵀ, W frozen, for one adapter or for several.

Three matrix products forward and five backward, alpha/r inside them: Kohya's form makes two further passes over every
output and mirrors them in backward. The gradients of A and B are added to their place in the flat buffer by the product
that makes them, so autograd has nothing to accumulate, and several batches before one update cost nothing more.

With K adapters the batch is K groups of samples, equally many each, in the order of the adapters; W is read once for all
of them (as in Punica, arXiv 2310.18547, and mLoRA, arXiv 2312.02515, which do it for language models).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class Routing:
    """Which adapters the batch belongs to: rows of the flat buffer, `count` of them from `first`, `step` apart."""

    first: int = 0
    count: int = 1
    step: int = 1

    def take(self, stacked: torch.Tensor) -> torch.Tensor:
        """The rows, as a view [count, …] of [K, …]."""
        return stacked[self.first : self.first + (self.count - 1) * self.step + 1 : self.step]


class LoraProduct(torch.autograd.Function):
    """See above. x [samples, …, in]; weight [out, in]; down [K, r, in]; up [K, out, r]."""

    @staticmethod
    def forward(  # noqa: PLR0913, PLR0917 - autograd hands over every tensor on its own
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, down: torch.Tensor,
        up: torch.Tensor, routing: Routing, scale: float,
    ) -> torch.Tensor:  # fmt: skip
        rows = Routing(routing.first, routing.count, routing.step)  # the shared one moves on before backward
        flat = x.reshape(-1, x.shape[-1])
        y = flat @ weight.t() if bias is None else torch.addmm(bias, flat, weight.t())
        a, b = rows.take(down), rows.take(up)
        if rows.count == 1:
            inner = flat @ a[0].t()
            y.addmm_(inner, b[0].t(), alpha=scale)
        else:
            inner = torch.bmm(_grouped(flat, rows), a.transpose(1, 2))
            _grouped(y, rows).baddbmm_(inner, b.transpose(1, 2), alpha=scale)
        ctx.save_for_backward(flat, inner, weight)
        ctx.down, ctx.up, ctx.rows, ctx.scale, ctx.shape = down, up, rows, scale, x.shape
        return y.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, given: torch.Tensor) -> Any:
        flat, inner, weight = ctx.saved_tensors
        rows, scale = ctx.rows, ctx.scale
        g = given.reshape(-1, given.shape[-1])
        a, b = rows.take(ctx.down.detach()), rows.take(ctx.up.detach())
        to_down, to_up = rows.take(_gradient(ctx.down)), rows.take(_gradient(ctx.up))
        dx = g @ weight if ctx.needs_input_grad[0] else None
        if rows.count == 1:
            to_inner = torch.addmm(inner, g, b[0], beta=0, alpha=scale)
            to_up[0].addmm_(g.t(), inner, alpha=scale)
            to_down[0].addmm_(to_inner.t(), flat)
            if dx is not None:
                dx.addmm_(to_inner, a[0])
        else:
            g3 = _grouped(g, rows)
            to_inner = torch.baddbmm(inner, g3, b, beta=0, alpha=scale)
            to_up.baddbmm_(g3.transpose(1, 2), inner, alpha=scale)
            to_down.baddbmm_(to_inner.transpose(1, 2), _grouped(flat, rows))
            if dx is not None:
                _grouped(dx, rows).baddbmm_(to_inner, a)
        return (None if dx is None else dx.view(ctx.shape)), None, None, None, None, None, None


def _grouped(flat: torch.Tensor, rows: Routing) -> torch.Tensor:
    """[N, width] as [K, N / K, width]."""
    return flat.view(rows.count, -1, flat.shape[-1])


def _gradient(weight: torch.Tensor) -> torch.Tensor:
    """Where gradients are added: the weight's own `grad`, of zeros where it has none yet."""
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return weight.grad
