"""One adapter in two forms: Kohya's, which UIs load, and the PEFT form that diffusers loads.

diffusers and PEFT drop alpha when they save (a reload is then off by 12–28 %), so the diffusers form carries its
strength in its weights: alpha/rank is folded into `up`, computed in float32. The stored dtype is kept where the folding
is exact in it (alpha/rank a power of two, the usual case), else all is float32: nothing is rounded either way. What the
file said before (dtype, ranks and alphas) stands in the metadata, so the way back gives the very same bytes; only of a
float32 file whose alpha/rank is no power of two the last bit may differ.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from brushset.errors import VerificationFailed
from brushset.lora.adapter import Factors
from brushset.lora.keys import LoraModule, key_table
from brushset.lora.strength import ORIGIN_KEY

if TYPE_CHECKING:
    import torch

A, B = "lora_A.weight", "lora_B.weight"
_DTYPES = ("float64", "float32", "float16", "bfloat16")
_EVERYWHERE = "*"
_ROUNDING = 2.0**-22  # two roundings of float32: folding and its undoing, where alpha/rank is no power of two


def to_diffusers(factors: Mapping[str, Factors]) -> dict[str, torch.Tensor]:
    """The PEFT form: two tensors a module, alpha folded in.

    Modules of a smaller rank are padded with zeros to the largest: diffusers would scale them by the wrong rank.
    """
    rank = max(factor.rank for factor in factors.values())
    folded = {name: _padded(factor, rank) for name, factor in factors.items()}
    exact = all(_survives(factor.scale * factor.up.float(), factor.up.dtype) for factor in folded.values())
    exact = exact and len({tensor.dtype for factor in folded.values() for tensor in (factor.down, factor.up)}) == 1
    table, weights = key_table(), {}
    for name, factor in folded.items():
        path, up = diffusers_path(table[name]), factor.scale * factor.up.float()
        weights[f"{path}.{A}"] = (factor.down if exact else factor.down.float()).contiguous()
        weights[f"{path}.{B}"] = (up.to(factor.up.dtype) if exact else up).contiguous()
    return weights


def to_kohya(factors: Mapping[str, Factors]) -> dict[str, torch.Tensor]:
    """Kohya's form: three tensors a module, alpha in the dtype of `up` where it holds it."""
    import torch

    table, weights = key_table(), {}
    for name, factor in factors.items():
        down, up, strength = table[name].keys
        alpha = torch.tensor(factor.alpha, dtype=torch.float32)
        weights[down], weights[up] = factor.down.contiguous(), factor.up.contiguous()
        weights[strength] = alpha.to(factor.up.dtype) if _survives(alpha, factor.up.dtype) else alpha
    return weights


def describe_origin(factors: Mapping[str, Factors]) -> str:
    """Dtype, rank and alpha of every module as JSON: the common pair under `*`, then the exceptions."""
    pairs = {name: (factor.rank, factor.alpha) for name, factor in factors.items()}
    common = Counter(pairs.values()).most_common(1)[0][0]
    dtype = Counter(str(factor.up.dtype).removeprefix("torch.") for factor in factors.values()).most_common(1)[0][0]
    other = {name: list(pair) for name, pair in sorted(pairs.items()) if pair != common}
    return json.dumps({"dtype": dtype, "modules": {_EVERYWHERE: list(common), **other}})


def restore_origin(factors: Mapping[str, Factors], text: str, source: str) -> dict[str, Factors]:
    """Takes folding and padding back as `describe_origin` tells, wherever ΔW stays the same.

    Raises:
        VerificationFailed: the description is none.
    """
    import torch

    try:
        origin: Any = json.loads(text)
        dtype, modules = origin["dtype"], origin["modules"]
        pairs = {name: modules.get(name, modules[_EVERYWHERE]) for name in factors}
        wanted = {name: (int(rank), float(alpha)) for name, (rank, alpha) in pairs.items()}
        assert dtype in _DTYPES
        assert all(rank > 0 and alpha for rank, alpha in wanted.values())
    except (ValueError, TypeError, KeyError, AttributeError, AssertionError, RecursionError) as error:
        raise VerificationFailed(f"{source}: its metadata {ORIGIN_KEY} is broken: {text[:80]}") from error
    return {name: _unfolded(factor, *wanted[name], getattr(torch, dtype)) for name, factor in factors.items()}


def diffusers_path(module: LoraModule) -> str:
    """A module's path behind its component's name, as diffusers' loader takes it."""
    return f"{module.component}.{module.path}"


def _unfolded(factor: Factors, rank: int, alpha: float, dtype: torch.dtype) -> Factors:
    """The factor at the rank, alpha and dtype it had; as it is where it would not be the same update."""
    import torch

    if rank > factor.rank or factor.down[rank:].any() or factor.up[:, rank:].any():
        return factor
    up = factor.up[:, :rank].float() * (factor.scale * rank / alpha)
    found = Factors(factor.down[:rank].to(dtype), up.to(dtype), alpha)
    folded = factor.scale * factor.up[:, :rank].float()
    off = (found.scale * found.up.float() - folded).norm()
    same = torch.equal(found.down.float(), factor.down[:rank].float()) and bool(off <= _ROUNDING * folded.norm())
    return found if same else factor


def _padded(factor: Factors, rank: int) -> Factors:
    """The same update at a larger rank; alpha grows along, so that the scale stays."""
    import torch

    lacking = rank - factor.rank
    if not lacking:
        return factor
    down = torch.cat([factor.down, factor.down.new_zeros(lacking, *factor.down.shape[1:])])
    up = torch.cat([factor.up, factor.up.new_zeros(factor.up.shape[0], lacking, *factor.up.shape[2:])], dim=1)
    return Factors(down, up, factor.alpha * rank / factor.rank)


def _survives(values: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether float32 values come back unchanged from `dtype`."""
    return bool((values.to(dtype).float() == values).all())
