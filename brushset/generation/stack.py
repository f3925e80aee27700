"""Several adapters side by side in one model, each row of a batch with weights of its own.

    y[n] = base(x[n]) + B · (s[n] ∘ (A · x[n]))      A = [A₁; A₂; …] [Σr, in], B = [alpha₁/r₁ B₁, …] [out, Σr]

s[n] [Σr] holds row n's weight of each adapter, at that module's block, over the adapter's ranks (the batched product of
Punica, arXiv 2310.18547, and S-LoRA, arXiv 2311.03285, with weights in place of one adapter a row). Linear layers, 1×1
and 3×3 convolutions alike. It is added by forward hooks, so nothing of the base is replaced or written to. Only adapters
that some row uses are put side by side, and a module where all their weights are 0 has no hook. Factors are in the
base's dtype, alpha/r is folded in and s multiplied in float32.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from brushset.errors import UsageError, VerificationFailed
from brushset.lora.adapter import Factors
from brushset.lora.compose.view import Mix
from brushset.lora.inspection import block_of
from brushset.lora.keys import Component, key_table
from brushset.lora.kinds import some
from brushset.lora.merge.weights import Weight

_KEPT_STACKS = 2  # sets of adapters whose joined factors are kept: a batch of two sets in turn joins nothing anew


@dataclass(frozen=True)
class Pair:
    """One adapter's factors in one module, in its shapes and dtype: down [r, in, …], up [out, r, …], alpha/r in `up`."""

    down: torch.Tensor
    up: torch.Tensor

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])


Pairs = Mapping[str, Pair]
"""One adapter in one model: Kohya name → factors."""


@dataclass
class _Branch:
    """The hook of one module. `weights` [rows, Σr], float32."""

    down: torch.Tensor
    up: torch.Tensor
    weights: torch.Tensor

    def __call__(self, module: nn.Module, args: tuple[Any, ...], y: torch.Tensor) -> torch.Tensor:
        x = args[0]
        if isinstance(module, nn.Conv2d):
            inner = F.conv2d(x, self.down, None, module.stride, module.padding, module.dilation)
            return y.add_(F.conv2d(inner.mul_(self.weights[:, :, None, None]), self.up))
        weights = self.weights if x.dim() == 2 else self.weights[:, None]
        inner = F.linear(x, self.down).mul_(weights)
        y.view(-1, y.shape[-1]).addmm_(inner.view(-1, inner.shape[-1]), self.up.t())
        return y


@dataclass(frozen=True)
class _Joined:
    """The factors of several adapters in one module. `holders` are columns of the row weights, with each one's rank."""

    module: nn.Module
    block: str
    holders: tuple[tuple[int, int], ...]
    down: torch.Tensor
    up: torch.Tensor


class LoraStack:
    """The adapters of one model, UNet or text encoder.

    `steady` keeps all of them hooked whatever the weights, so that shapes stay as they are when a mix changes: what a
    compiled model wants.
    """

    def __init__(self, model: nn.Module, component: Component, *, steady: bool = False) -> None:
        self.model, self.component, self.steady = model, component, steady
        self._adapters: dict[str, Pairs] = {}
        self._blocks: dict[str, Mapping[str, str]] = {}
        self._joined: OrderedDict[tuple[str, ...], Mapping[str, _Joined]] = OrderedDict()
        self._branches: dict[str, _Branch] = {}
        self._handles: dict[str, Any] = {}
        self._rows: tuple[Hashable, ...] = ()

    @property
    def adapters(self) -> Mapping[str, Pairs]:
        """Those that have a part in this model, by name."""
        return self._adapters

    @property
    def hooked(self) -> int:
        """How many modules have a hook now."""
        return len(self._handles)

    def fit(self, factors: Mapping[str, Factors], file: Path, base: str) -> Pairs:
        """An adapter's factors for this model, on its device and in its dtype; checked, and not yet added.

        Raises:
            UsageError: the model has no such module, or one of other widths.
            VerificationFailed: values that this dtype does not hold.
        """
        like = next(self.model.parameters())
        pairs = {}
        for name, module in key_table().items():
            if module.component != self.component or name not in factors:
                continue
            factor = factors[name]
            weight = self._module_weight(module.path)
            place = f"{module.component}.{module.path}"
            if weight is None:
                raise UsageError(f"{file}: {place} is no module of base model {base}")
            if factor.down.shape[1:] != weight.shape[1:] or factor.up.shape[0] != weight.shape[0]:
                raise UsageError(
                    f"{file}: does not fit base model {base}: {place} takes {list(weight.shape[1:])}, the adapter "
                    f"{list(factor.down.shape[1:])}; fix: load it on the base it was trained on"
                )
            # A copy, since a product rounds by how its factors lie in memory: equal weights of any file, equal bits.
            down = factor.down.to(like.device, like.dtype, copy=True).contiguous()
            up = factor.scale * factor.up.float()
            pairs[name] = Pair(down, up.to(like.device, like.dtype))
        if lost := [
            name for name, pair in pairs.items() if not (pair.down.isfinite().all() and pair.up.isfinite().all())
        ]:
            raise VerificationFailed(
                f"{file}: {len(lost)} modules do not fit into {like.dtype}: {some(lost)}; fix: MultiLoRAGenerator("
                "dtype=torch.float32)"
            )
        return pairs

    def add(self, name: str, pairs: Pairs) -> None:
        """Adds an adapter, or replaces the one of that name. Nothing is hooked yet, but in a steady stack."""
        self.remove(name)
        if pairs:
            self._adapters[name] = pairs
            self._blocks[name] = {block_of(module): module for module in pairs}
        if self.steady:
            self.put_in([()])

    def remove(self, name: str) -> None:
        """Forgets an adapter; none of that name is no error."""
        self._take_out_all()
        self._adapters.pop(name, None)
        self._joined.clear()

    def key(self, mix: Mix) -> Hashable:
        """What a mix does to this model: equal keys, equal outputs. Empty where it does nothing."""
        found = []
        for name, weight in sorted(mix, key=lambda entry: entry[0]):
            if name in self._adapters:
                by_block = {block: weight.of(module) for block, module in self._blocks[name].items()}
                if any(by_block.values()):
                    found.append((name, tuple(sorted(by_block.items()))))
        return tuple(found)

    def put_in(self, rows: Sequence[Mix]) -> None:
        """Sets the mix of every row of the next batches, which have that many."""
        keys = tuple(tuple((name, repr(weight)) for name, weight in mix) for mix in rows)
        if keys == self._rows:
            return
        weights = [{name: weight for name, weight in mix if name in self._adapters} for mix in rows]
        used = self._adapters if self.steady else {name for row in weights for name in row if not row[name].nothing}
        joined = self._join(tuple(sorted(used)))
        tables = _RowWeights(tuple(sorted(used)), weights, next(self.model.parameters()).device)
        for name, each in joined.items():
            table = tables.of(name, each)
            if table.any or self.steady:
                self._hook(name, each, table.values)
            else:
                self._take_out(name)
        for name in self._handles.keys() - joined.keys():
            self._take_out(name)
        self._rows = keys

    def take_out(self) -> None:
        """Removes every hook; the model is the base's again. A steady stack keeps them."""
        if not self.steady:
            self._take_out_all()

    def _hook(self, name: str, joined: _Joined, weights: torch.Tensor) -> None:
        branch = self._branches.get(name)
        if branch is None:
            self._branches[name] = branch = _Branch(joined.down, joined.up, weights)
            self._handles[name] = joined.module.register_forward_hook(branch)
        branch.down, branch.up, branch.weights = joined.down, joined.up, weights

    def _take_out(self, name: str) -> None:
        if name in self._handles:
            self._handles.pop(name).remove()
            del self._branches[name]

    def _take_out_all(self) -> None:
        for name in list(self._handles):
            self._take_out(name)
        self._rows = ()

    def _join(self, names: tuple[str, ...]) -> Mapping[str, _Joined]:
        if names not in self._joined:
            self._joined[names] = self._join_anew(names)
            while len(self._joined) > _KEPT_STACKS:
                self._joined.popitem(last=False)
        self._joined.move_to_end(names)
        return self._joined[names]

    def _join_anew(self, names: tuple[str, ...]) -> Mapping[str, _Joined]:
        table, joined = key_table(), {}
        for module in sorted(set().union(*(self._adapters[name] for name in names))):
            pairs = {
                at: self._adapters[name][module] for at, name in enumerate(names) if module in self._adapters[name]
            }
            joined[module] = _Joined(
                module=self.model.get_submodule(table[module].path),
                block=block_of(module),
                holders=tuple((at, pair.rank) for at, pair in pairs.items()),
                down=_cat([pair.down for pair in pairs.values()], 0),
                up=_cat([pair.up for pair in pairs.values()], 1),
            )
        return joined

    def _module_weight(self, path: str) -> torch.Tensor | None:
        try:
            weight = self.model.get_submodule(path).weight
        except AttributeError:
            return None
        return weight if isinstance(weight, torch.Tensor) else None


@dataclass(frozen=True)
class _Table:
    """Row weights [rows, Σr], float32, and whether any is not 0."""

    values: torch.Tensor
    any: bool


class _RowWeights:
    """The row weights of every module. Modules of one block with equal ranks share one tensor, whatever its values:
    compiled code holds on to which of its inputs are one.
    """

    def __init__(self, names: tuple[str, ...], rows: Sequence[Mapping[str, Weight]], device: torch.device) -> None:
        self._names, self._rows, self._device = names, rows, device
        self._made: dict[tuple[str, tuple[tuple[int, int], ...]], _Table] = {}

    def of(self, module: str, joined: _Joined) -> _Table:
        key = (joined.block, joined.holders)
        if key not in self._made:
            numbers = [
                [row[name].of(module) if (name := self._names[at]) in row else 0.0 for at, _ in joined.holders]
                for row in self._rows
            ]
            ranks = torch.tensor([rank for _, rank in joined.holders])
            values = torch.tensor(numbers).repeat_interleave(ranks, dim=1).to(self._device)
            self._made[key] = _Table(values, any(any(row) for row in numbers))
        return self._made[key]


def _cat(tensors: Sequence[torch.Tensor], dim: int) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim=dim)
