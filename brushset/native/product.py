"""The product of layers that are trained: y = x Wᵀ + b + alpha/r · (x Aᵀ) Bᵀ, W frozen, for one adapter or for several.

Layers that read the same input (q, k and v of self-attention; k and v of all cross-attentions, which read the text) are
one product over their W's and A's laid behind one another; each has its B and its output, a view of the joint one. Their
gradients are laid side by side for the product with W: a copy in place of a product and a sum for each.
alpha/r is inside the matrix products: Kohya's form makes two further passes over every output and mirrors them in
backward. Gradients of A and B are added to their place in the flat buffer by the product that makes them, so autograd
has nothing to accumulate, and several batches before one update cost nothing more.

With K adapters the batch is K groups of samples, equally many each, in the order of the adapters; W is read once for all
of them (as in Punica, arXiv 2310.18547, and mLoRA, arXiv 2312.02515, which do it for language models).
Left out: q, k and v in one batched product with B (the K adapters take that place), and A behind W in one matrix (A
would have to lie in the frozen weight, and K adapters would each be computed for every sample).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

Frozen = nn.Linear | nn.Conv2d


@dataclass
class Routing:
    """Which adapters the batch belongs to: rows of the flat buffer, `count` of them from `first`, `step` apart."""

    first: int = 0
    count: int = 1
    step: int = 1

    def take(self, stacked: torch.Tensor) -> torch.Tensor:
        """The rows, as a view [count, …] of [K, …]."""
        return stacked[self.first : self.first + (self.count - 1) * self.step + 1 : self.step]


@dataclass(frozen=True)
class _Rows:
    """What a product reads and adds to for `count` rows: views, made once. down [count, G·r, in], ups of [count, out, r].
    `scale` is alpha/r; where it is not the same for all rows it is 1, and `scales` [count, 1, 1] are.
    """

    count: int
    down: torch.Tensor
    ups: tuple[torch.Tensor, ...]
    to_down: torch.Tensor
    to_ups: tuple[torch.Tensor, ...]
    scale: float
    scales: torch.Tensor | None


class Layer(Protocol):
    """What a product reads of a layer: brushset.native.lora.LoraLayer."""

    frozen: Frozen
    down: nn.Parameter
    up: nn.Parameter
    scales: list[float]
    routing: Routing

    def frozen_product(self, x: torch.Tensor) -> torch.Tensor: ...


class Product:
    """G layers that read the same input. Several lie in one pack's flat buffer, A behind A; their frozen weights are moved
    behind one another, and are then views of what is here, so that memory holds them once.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = tuple(layers)
        frozen = [layer.frozen for layer in layers]
        self.weight, self.bias = frozen[0].weight.detach().view(frozen[0].weight.shape[:2]), frozen[0].bias
        self.widths = [each.weight.shape[0] for each in frozen]
        if len(frozen) > 1:
            self.weight = torch.cat([each.weight for each in frozen]).detach()
            for each, rows in zip(frozen, self.weight.split(self.widths), strict=True):
                each.weight.data = rows
            biases = [each.bias for each in frozen if each.bias is not None]
            self.bias = torch.cat(biases).detach() if biases else None
        self._rows: dict[tuple[int, int, int], _Rows] = {}

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Each layer's output [samples, …, out] for x [samples, …, in]."""
        first = self.layers[0]
        if not first.down.requires_grad:  # `up` is zero and stays so
            return tuple(layer.frozen_product(x) for layer in self.layers)
        made: tuple[torch.Tensor, ...] = LoraProduct.apply(x, first.down, self, self.rows(first.routing))
        return made

    def rows(self, routing: Routing) -> _Rows:
        """The views for the rows that a pass is for."""
        key = (routing.first, routing.count, routing.step)
        if key not in self._rows:
            self._rows[key] = self._take(routing)
        return self._rows[key]

    def _take(self, routing: Routing) -> _Rows:
        downs, ups = [layer.down for layer in self.layers], [layer.up for layer in self.layers]
        scales = self.layers[0].scales[routing.first :: routing.step][: routing.count]
        equal = len(set(scales)) == 1
        spread = torch.tensor(scales, device=downs[0].device, dtype=downs[0].dtype).view(-1, 1, 1)
        return _Rows(
            routing.count,
            routing.take(_behind_one_another([down.detach() for down in downs])),
            tuple(routing.take(up.detach()) for up in ups),
            routing.take(_behind_one_another([_gradient(down) for down in downs])),
            tuple(routing.take(_gradient(up)) for up in ups),
            scales[0] if equal else 1.0,
            None if equal else spread,
        )


class LoraProduct(torch.autograd.Function):
    """See above. x [samples, …, in]; `trained` only says that a gradient is wanted."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, _trained: nn.Parameter, product: Product, rows: _Rows) -> Any:
        flat = x.reshape(-1, x.shape[-1])
        weight, bias = product.weight, product.bias
        y = flat @ weight.t() if bias is None else torch.addmm(bias, flat, weight.t())
        inner = torch.bmm(_grouped(flat, rows), rows.down.transpose(1, 2))
        if rows.scales is not None:
            inner.mul_(rows.scales)
        outputs = (y,) if len(product.widths) == 1 else y.split(product.widths, dim=1)
        for output, part, up in zip(outputs, _parts(inner, rows), rows.ups, strict=True):
            _grouped(output, rows).baddbmm_(part, up.transpose(1, 2), alpha=rows.scale)
        ctx.save_for_backward(flat, inner)
        ctx.product, ctx.rows, ctx.shape = product, rows, x.shape
        return tuple(output.view(*x.shape[:-1], output.shape[1]) for output in outputs)

    @staticmethod
    def backward(ctx: Any, *given: torch.Tensor) -> Any:
        flat, inner = ctx.saved_tensors
        rows: _Rows = ctx.rows
        flats, to_inner = [g.reshape(-1, g.shape[-1]) for g in given], torch.empty_like(inner)
        parts = zip(flats, rows.ups, rows.to_ups, _parts(inner, rows), _parts(to_inner, rows), strict=True)
        for g, up, to_up, part, to_part in parts:
            g_rows = _grouped(g, rows)
            to_part.baddbmm_(g_rows, up, beta=0, alpha=rows.scale)
            to_up.baddbmm_(g_rows.transpose(1, 2), part, alpha=rows.scale)
        if rows.scales is not None:
            to_inner.mul_(rows.scales)
        rows.to_down.baddbmm_(to_inner.transpose(1, 2), _grouped(flat, rows))
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        dx = (flats[0] if len(flats) == 1 else torch.cat(flats, dim=1)) @ ctx.product.weight
        _grouped(dx, rows).baddbmm_(to_inner, rows.down)
        return dx.view(ctx.shape), None, None, None


def _grouped(flat: torch.Tensor, rows: _Rows) -> torch.Tensor:
    """[N, width] as [count, N / count, width]. Done a thousand times a step: `unflatten` is Python, and takes twice as long."""
    return flat.view(rows.count, -1, flat.shape[1])


def _parts(inner: torch.Tensor, rows: _Rows) -> Sequence[torch.Tensor]:
    """[count, n, G·r] as G times [count, n, r]."""
    return (inner,) if len(rows.ups) == 1 else inner.split(rows.ups[0].shape[2], dim=2)


def _behind_one_another(stacked: Sequence[torch.Tensor]) -> torch.Tensor:
    """G views [K, r, in] of one buffer that follow each other in it, as one view [K, G·r, in]."""
    first = stacked[0]
    places = [each.storage_offset() - first.storage_offset() for each in stacked]
    held = {each.untyped_storage().data_ptr() for each in stacked}
    if len(held) > 1 or places != [place * first[0].numel() for place in range(len(stacked))]:
        raise ValueError("layers of one product must lie behind one another in the flat buffer")
    return first.as_strided((len(first), len(stacked) * first.shape[1], first.shape[2]), first.stride())


def _gradient(weight: torch.Tensor) -> torch.Tensor:
    """Where gradients are added: the weight's own `grad`, of zeros where it has none yet."""
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return weight.grad
