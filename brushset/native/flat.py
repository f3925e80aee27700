"""All adapters of one training in one buffer, so that clipping, updating and casting are a few operations each.

    master     [K, P]  float32 (float64 for float64 models): what is trained and saved
    working    [K, P]  in the models' precision: what the products read; the same memory as master where that is float32
    gradients  [K, P]  in the models' precision: what the products add to
    summed     [K, P]  in master's precision: what the optimizer reads; the same memory as gradients where it can be

A row is an adapter. A layer's A and B are views [K, r, in] and [K, out, r] of `working`, their `grad` of `gradients`.
Groups of one learning rate lie together, weights that no one trains behind them, without gradients. At rank 32 a row of
all 264 modules has 15.9 M numbers: 254 MB with gradients and Adam's moments in float32.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from brushset.native.lora import LoraLayer
from brushset.native.product import Routing


class FlatWeights:
    """See above. `groups` are the layers that are trained, by group; `idle` are the others."""

    def __init__(self, groups: Mapping[str, Mapping[str, LoraLayer]], idle: Mapping[str, LoraLayer]) -> None:
        layers = [layer for group in groups.values() for layer in group.values()]
        first = (layers or list(idle.values()))[0]
        rows, device, narrow = first.rows, first.frozen.weight.device, first.frozen.weight.dtype
        wide = torch.promote_types(narrow, torch.float32)
        self._groups: dict[str, slice] = {}
        start = 0
        for name, group in groups.items():
            end = start + sum(layer.down[0].numel() + layer.up[0].numel() for layer in group.values())
            self._groups[name] = slice(start, end)
            start = end
        self.trained = slice(0, start)
        total = start + sum(layer.down[0].numel() + layer.up[0].numel() for layer in idle.values())
        self.master = torch.zeros(rows, total, device=device, dtype=wide)
        self.working = self.master if wide == narrow else torch.zeros_like(self.master, dtype=narrow)
        self.gradients = torch.zeros(rows, start, device=device, dtype=narrow)
        self.summed = self.gradients if wide == narrow else torch.zeros(rows, start, device=device, dtype=wide)
        self._tensors: dict[str, list[tuple[slice, torch.Size]]] = {name: [] for name in (*groups, "")}
        at = 0
        for name, group in (*groups.items(), ("", idle)):
            for layer in group.values():
                at = self._place(layer, name, at)
        self.refresh()

    def _place(self, layer: LoraLayer, group: str, at: int) -> int:
        """Moves a layer's weights into the buffer; returns where the next ones go."""
        for key in ("down", "up"):
            held = getattr(layer, key).detach()
            where = slice(at, at + held[0].numel())
            self._tensors[group].append((where, held.shape[1:]))
            self.master[:, where].copy_(held.flatten(1))
            weight = nn.Parameter(self.working[:, where].view(held.shape), requires_grad=bool(group))
            if group:
                weight.grad = self.gradients[:, where].view(held.shape)
            setattr(layer, key, weight)
            setattr(layer, f"{key}_master", self.master[:, where].view(held.shape))
            at = where.stop
        return at

    def parameters(self, row: int, group: str, *, split: bool = False) -> list[nn.Parameter]:
        """One adapter's weights of one group for an optimizer: a single tensor, or one a matrix with `split`."""
        parts = [where for where, _ in self._tensors[group]] if split else [self._groups[group]]
        made = []
        for where in parts:
            parameter = nn.Parameter(self.master[row, where])
            parameter.grad = self.summed[row, where]
            made.append(parameter)
        return made

    def sum_up(self) -> None:
        """Adds the last batch's gradients to the sum where that is wider; in half precision many would be lost."""
        if self.summed is not self.gradients:
            self.summed.add_(self.gradients)
            self.gradients.zero_()

    def clip(self, rows: Routing, limits: torch.Tensor) -> None:
        """Shrinks each adapter's gradients to its limit [count], in norm over all its groups; infinity leaves them."""
        taken = rows.take(self.summed)
        norms = torch.linalg.vector_norm(taken, dim=1)
        taken.mul_((limits / (norms + 1e-6)).clamp(max=1.0).unsqueeze(1))

    def clear(self, rows: Routing) -> None:
        """Forgets the gradients of adapters that were updated."""
        rows.take(self.summed).zero_()

    def refresh(self) -> None:
        """Brings the working copy up to date."""
        if self.working is not self.master:
            self.working.copy_(self.master)
