"""One adapter in two forms: Kohya's file, as trained, and the PEFT form that diffusers loads; and the proof.

diffusers and PEFT drop alpha when they save, so alpha/rank is folded into `up` here: the form carries its strength in
its weights (B = alpha/rank · up, A = down). The stored dtype is kept where the folding is exact in it (alpha/rank a
power of two), else float32. What a file adds to the model is ΔW = alpha/rank · up · down; both forms must give the
same on every module. Measured: one of 264 modules lost moves the UNet's output by 0.6 %, which no image would show.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brushset.bases.header import read_header
from brushset.bases.tensors import load_tensors, save_tensors
from brushset.errors import UsageError, VerificationFailed
from brushset.lora.keys import LoraModule, key_table
from brushset.lora.metadata import model_hash

if TYPE_CHECKING:
    import torch

WEIGHT_NAME = "pytorch_lora_weights.safetensors"  # the name that diffusers looks for in a folder
MAX_RELATIVE_ERROR = 1e-6  # ten times what float32 leaves
_A, _B = "lora_A.weight", "lora_B.weight"
_SHOWN = 3


@dataclass(frozen=True)
class Factors:
    """One module's low-rank update: ΔW = scale · up · down."""

    down: torch.Tensor
    up: torch.Tensor
    scale: float

    def delta(self) -> torch.Tensor:
        """ΔW in float32, [out, in], a kernel's places side by side."""
        down, up = self.down.float().flatten(1), self.up.float().flatten(1)
        return self.scale * (up @ down)


@dataclass(frozen=True)
class Conversion:
    """What was written, and how far it is from its source: the largest ‖ΔW − ΔW'‖ / ‖ΔW‖ of all modules."""

    path: Path
    modules: int
    max_relative_error: float


def convert_to_diffusers(kohya: Path, folder: Path) -> Conversion:
    """Writes the PEFT form of a Kohya file into `folder` and proves it.

    Raises:
        VerificationFailed: keys that belong to no module, an incomplete module, or a ΔW that differs.
    """
    weights = kohya_to_diffusers(load_tensors(kohya), source=str(kohya))
    target = folder / WEIGHT_NAME
    save_tensors(target, weights, {"brushset.source_model_hash": model_hash(kohya)})
    error = compare_deltas(kohya, target)
    if not error <= MAX_RELATIVE_ERROR:
        raise VerificationFailed(
            f"{target}: its ΔW differs from {kohya} by {error:.2g} where {MAX_RELATIVE_ERROR:g} is allowed"
        )
    return Conversion(target, len(weights) // 2, error)


def kohya_to_diffusers(state: Mapping[str, torch.Tensor], *, source: str = "LoRA") -> dict[str, torch.Tensor]:
    """The PEFT form of a Kohya state dict: two tensors a module, alpha folded in.

    Modules of a smaller rank are padded with zeros to the largest: diffusers would scale them by the wrong rank.
    """
    factors = _kohya_factors(state, source)
    rank = max(factor.down.shape[0] for factor in factors.values())
    folded = {name: _padded(factor, rank) for name, factor in factors.items()}
    exact = all(_survives(factor.scale * factor.up.float(), factor.up.dtype) for factor in folded.values())
    table, weights = key_table(), {}
    for name, factor in folded.items():
        path = _diffusers_path(table[name])
        up = factor.scale * factor.up.float()
        weights[f"{path}.{_A}"] = (factor.down if exact else factor.down.float()).contiguous()
        weights[f"{path}.{_B}"] = (up.to(factor.up.dtype) if exact else up).contiguous()
    return weights


def diffusers_to_kohya(
    state: Mapping[str, torch.Tensor], *, alpha: float | None = None, source: str = "LoRA"
) -> dict[str, torch.Tensor]:
    """The Kohya form of a PEFT state dict that carries its strength in B. With `alpha`, B is unfolded so that
    alpha/rank acts as before; without, alpha is the rank.
    """
    import torch

    weights: dict[str, torch.Tensor] = {}
    for name, factor in _diffusers_factors(state, source).items():
        rank = factor.down.shape[0]
        down, up, strength = key_table()[name].keys
        weights[down] = factor.down
        weights[up] = factor.up if alpha is None else (factor.up.float() * (rank / alpha)).to(factor.up.dtype)
        weights[strength] = torch.tensor(float(rank) if alpha is None else alpha, dtype=factor.up.dtype)
    return weights


def compare_deltas(kohya: Path, diffusers: Path) -> float:
    """The largest ‖ΔW − ΔW'‖ / ‖ΔW‖ (Frobenius, float32) over all modules of the two files; 0 is equal.

    Raises:
        VerificationFailed: the files do not hold the same modules, or shapes differ.
    """
    ours = _kohya_factors(load_tensors(kohya), str(kohya))
    theirs = _diffusers_factors(load_tensors(diffusers), str(diffusers))
    if missing := sorted(ours.keys() ^ theirs.keys()):
        raise VerificationFailed(
            f"{diffusers}: {len(missing)} modules are not in both forms (the other is {kohya}): {_some(missing)}"
        )
    return max(_relative_error(name, ours[name], theirs[name], diffusers) for name in ours)


def is_kohya(path: Path) -> bool:
    """Whether a LoRA file has Kohya's names.

    Raises:
        UsageError: not a safetensors file, or neither Kohya's nor diffusers' names.
    """
    names = read_header(path).tensors
    if any(name.startswith(("lora_unet_", "lora_te_")) for name in names):
        return True
    if any(name.startswith(("unet.", "text_encoder.")) for name in names):
        return False
    raise UsageError(f"{path}: no SD 1.5 LoRA: its keys are like {_some(sorted(names))}")


def _kohya_factors(state: Mapping[str, torch.Tensor], source: str) -> dict[str, Factors]:
    """Kohya name → factors, for every module of the state dict; what is left over raises."""
    left, factors = dict(state), {}
    for name, module in key_table().items():
        down, up, alpha = (left.pop(key, None) for key in module.keys)
        if down is None and up is None and alpha is None:
            continue
        if down is None or up is None or alpha is None:
            raise VerificationFailed(f"{source}: {name} is incomplete: it needs lora_down, lora_up and alpha")
        factors[name] = _checked(name, Factors(down, up, alpha.item() / down.shape[0]), source)
    _refuse_left(left, factors, source)
    return factors


def _diffusers_factors(state: Mapping[str, torch.Tensor], source: str) -> dict[str, Factors]:
    left, factors = dict(state), {}
    for name, module in key_table().items():
        path = _diffusers_path(module)
        down, up = left.pop(f"{path}.{_A}", None), left.pop(f"{path}.{_B}", None)
        if down is None and up is None:
            continue
        if down is None or up is None:
            raise VerificationFailed(f"{source}: {path} is incomplete: it needs {_A} and {_B}")
        factors[name] = _checked(name, Factors(down, up, 1.0), source)
    _refuse_left(left, factors, source)
    return factors


def _refuse_left(left: Mapping[str, Any], factors: Mapping[str, Any], source: str) -> None:
    if left:
        raise VerificationFailed(f"{source}: {len(left)} keys name no module of SD 1.5: {_some(sorted(left))}")
    if not factors:
        raise VerificationFailed(f"{source}: holds no LoRA module")


def _checked(name: str, factor: Factors, source: str) -> Factors:
    down, up = factor.down.shape, factor.up.shape
    if len(down) != len(up) or len(down) not in (2, 4) or up[1] != down[0]:
        raise VerificationFailed(f"{source}: {name}: down {list(down)} and up {list(up)} do not multiply")
    return factor


def _padded(factor: Factors, rank: int) -> Factors:
    import torch

    lacking = rank - factor.down.shape[0]
    if not lacking:
        return factor
    down = torch.cat([factor.down, factor.down.new_zeros(lacking, *factor.down.shape[1:])])
    up = torch.cat([factor.up, factor.up.new_zeros(factor.up.shape[0], lacking, *factor.up.shape[2:])], dim=1)
    return Factors(down, up, factor.scale)


def _survives(values: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether float32 values come back unchanged from `dtype`. NaN passes: it is for verify_lora to find."""
    return bool(((values.to(dtype).float() == values) | values.isnan()).all())


def _relative_error(name: str, ours: Factors, theirs: Factors, source: Path) -> float:
    delta, other = ours.delta(), theirs.delta()
    if delta.shape != other.shape:
        raise VerificationFailed(f"{source}: {name}: ΔW is {list(other.shape)} instead of {list(delta.shape)}")
    difference, size = (delta - other).norm().item(), delta.norm().item()
    return difference / size if size else difference


def _diffusers_path(module: LoraModule) -> str:
    return f"{module.component}.{module.path}"


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest
