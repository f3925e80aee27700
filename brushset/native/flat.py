"""All adapters of one training in one buffer, so that clipping, updating and casting are a few operations each.

    master     [K, P]  float32 (float64 for float64 models): what is trained and saved
    working    [K, P]  in the models' precision: what the products read; the same memory as master where that is float32
    gradients  [K, P]  in the models' precision: what the products add to
    summed     [K, P]  in master's precision: what the optimizer reads; the same memory as gradients where it can be

A row is an adapter. A layer's A and B are views [K, r, in] and [K, out, r] of `working`, their `grad` of `gradients`.
Groups of one learning rate lie together, in stretches: of each first every A, in the order of the layers, then every B, so
that layers that follow each other can be one product. An adapter may reach the first stretches of a group alone, as one
that skips the text encoder's last layers does: the others are not its optimizer's, and stay as they are. So the places are
the same whatever is reached. Weights that no one trains lie behind the groups, without gradients. At rank 32 a row of all
264 modules has 15.9 M numbers: 254 MB with gradients and Adam's moments in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from brushset.native.lora import LoraLayer
from brushset.native.product import Routing

Layers = Mapping[str, LoraLayer]


class FlatWeights:
    """See above. `groups` are the layers that are trained, in the stretches of each group; `idle` are the others. `reached`
    says, of a group, how many stretches each adapter reaches: all where it says nothing.
    """

    def __init__(
        self,
        groups: Mapping[str, Sequence[Layers]],
        idle: Layers,
        reached: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        stretches = [stretch for group in groups.values() for stretch in group]
        self._layers = [layer for stretch in (*stretches, idle) for layer in stretch.values()]
        first = self._layers[0]
        rows, device, narrow = len(first.ranks), first.frozen.weight.device, first.frozen.weight.dtype
        wide = torch.promote_types(narrow, torch.float32)
        self._reached = {name: [len(group)] * rows for name, group in groups.items()} | dict(reached or {})
        size = sum(_size(stretch) for stretch in stretches)
        self.trained = slice(0, size)
        self.master = torch.zeros(rows, size + _size(idle), device=device, dtype=wide)
        self.working = self.master if wide == narrow else torch.zeros_like(self.master, dtype=narrow)
        self.gradients = torch.zeros(rows, size, device=device, dtype=narrow)
        self.summed = self.gradients if wide == narrow else torch.zeros(rows, size, device=device, dtype=wide)
        self._places: dict[str, list[list[slice]]] = {name: [] for name in groups}
        at = 0
        for name, group in groups.items():
            for number, stretch in enumerate(group):
                trained = number < max(self._reached[name])
                self._places[name].append(self._place(list(stretch.values()), at, trained=trained))
                at = self._places[name][-1][-1].stop
        self._place(list(idle.values()), at, trained=False)
        self.refresh()

    def _place(self, layers: Sequence[LoraLayer], at: int, *, trained: bool) -> list[slice]:
        """Moves the layers' weights into the buffer; returns where each matrix lies."""
        held = [layer.down.detach() for layer in layers] + [layer.up.detach() for layer in layers]
        places = []
        for tensor in held:
            places.append(slice(at, at + tensor[0].numel()))
            self.master[:, places[-1]].copy_(tensor.flatten(1))
            at = places[-1].stop
        for layer, *own in zip(layers, places, places[len(layers) :], strict=False):
            shapes = layer.down.shape, layer.up.shape
            down, up = (self.working[:, where].view(shape) for where, shape in zip(own, shapes, strict=True))
            layer.place(down, up, trained=trained)
            kept = (self.master[:, where].view(shape) for where, shape in zip(own, shapes, strict=True))
            layer.down_master, layer.up_master = kept
            if trained:
                layer.down.grad, layer.up.grad = (
                    self.gradients[:, where].view(shape) for where, shape in zip(own, shapes, strict=True)
                )
        return places

    def parameters(self, row: int, group: str, *, split: bool = False) -> list[nn.Parameter]:
        """What one adapter reaches of one group, for an optimizer: a single tensor, or one a matrix with `split`."""
        matrices = [where for stretch in self._places[group][: self._reached[group][row]] for where in stretch]
        made = []
        for where in matrices if split else [self._reach(row, group)]:
            parameter = nn.Parameter(self.master[row, where])
            parameter.grad = self.summed[row, where]
            made.append(parameter)
        return made

    def _reach(self, row: int, group: str) -> slice:
        """Where the weights lie that one adapter reaches of one group."""
        places = self._places[group]
        return slice(places[0][0].start, places[self._reached[group][row] - 1][-1].stop)

    def strip(self, row: int, values: torch.Tensor, group: str | None = None) -> torch.Tensor:
        """One adapter's `values`, as long as a row or what is trained of it or, with its name, as what it reaches of a
        group, without those that only fill up to the pack's largest rank. A number of its own, such as a step, is left as it is.
        """
        own = self._own(row)
        if own is None or values.dim() == 0:
            return values
        start = 0 if group is None else self._reach(row, group).start
        return values[own[start : start + len(values)]]

    def pad(self, row: int, values: torch.Tensor, group: str | None = None) -> torch.Tensor:
        """The inverse of `strip`: zeros where there is nothing."""
        own = self._own(row)
        if own is None or values.dim() == 0:
            return values
        lengths = [own, own[self.trained]] if group is None else [own[self._reach(row, group)]]
        own = next(each for each in lengths if int(each.sum()) == len(values))
        padded = torch.zeros(len(own), device=own.device, dtype=values.dtype)
        return padded.masked_scatter_(own, values.to(own.device))

    def _own(self, row: int) -> torch.Tensor | None:
        """Which numbers of a row are the adapter's, bool [P]; None where all are."""
        if all(layer.ranks[row] == max(layer.ranks) for layer in self._layers):
            return None
        own = torch.zeros_like(self.master[0], dtype=torch.bool)
        for layer in self._layers:
            down, up = (own.as_strided(kept.shape[1:], kept.stride()[1:], kept.storage_offset())
                        for kept in (layer.down_master, layer.up_master))  # fmt: skip
            down[: layer.ranks[row]] = True
            up[:, : layer.ranks[row]] = True
        return own

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


def _size(layers: Layers) -> int:
    """How many numbers they take in a row."""
    return sum(layer.down[0].numel() + layer.up[0].numel() for layer in layers.values())
