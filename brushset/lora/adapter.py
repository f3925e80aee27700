"""An adapter read from whatever file or folder a user has: Kohya name → the factors of its update.

Nothing in a downloaded file is trusted: it is safetensors by content, its header adds up, its keys name modules of
SD 1.5 once each, its shapes are those modules', its ranks and alphas are numbers that make sense, its values finite.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from brushset.bases.configs import SD15, TINY, Architecture
from brushset.bases.header import Header, read_header
from brushset.bases.tensors import load_tensors
from brushset.errors import UsageError, VerificationFailed
from brushset.lora.keys import Component, LoraModule, key_table
from brushset.lora.kinds import some
from brushset.lora.layouts import KOHYA, Layout, read_layout
from brushset.lora.strength import Config, is_alpha_stated, stated_configs

if TYPE_CHECKING:
    import torch

WEIGHT_NAME = "pytorch_lora_weights.safetensors"  # the name that diffusers looks for in a folder
PEFT_NAME = "adapter_model.safetensors"
MAX_RANK = 1024  # above the widest layers' 1280 a rank adds nothing; all modules at this one would take 2.4 GB
_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Factors:
    """One module's low-rank update: ΔW = alpha/rank · up · down."""

    down: torch.Tensor
    up: torch.Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def delta(self) -> torch.Tensor:
        """ΔW in float32, [out, in], a kernel's places side by side."""
        down, up = self.down.float().flatten(1), self.up.float().flatten(1)
        return self.scale * (up @ down)


@dataclass(frozen=True)
class AdapterFile:
    """What was read. `layouts` are those met (see layouts.py), `alpha_stated` is false where alpha is the rank for want
    of a word about it. `architecture` is the model whose widths the file has: SD 1.5, or the narrow one.
    """

    path: Path
    files: tuple[Path, ...]
    layouts: tuple[str, ...]
    factors: Mapping[str, Factors]
    metadata: Mapping[str, str]
    dtypes: tuple[str, ...]
    architecture: Architecture
    alpha_stated: bool
    old_text_prefix: bool

    @property
    def ranks(self) -> list[int]:
        return sorted({factor.rank for factor in self.factors.values()})

    @property
    def dead(self) -> bool:
        """Whether it adds nothing: of each module up or down is all zero."""
        return not any(factor.up.any() and factor.down.any() for factor in self.factors.values())


def read_adapter(path: Path) -> AdapterFile:
    """Reads a LoRA file of any layout, or a folder that holds one.

    Raises:
        UsageError: no such file, a pickle, not safetensors, another method's or family's.
        VerificationFailed: keys, shapes or values that are wrong, a line each.
    """
    files = adapter_files(path)
    read = [_read_file(file) for file in files]
    factors: dict[str, Factors] = {}
    for file, part in zip(files, read, strict=True):
        if both := sorted(factors.keys() & part.factors.keys()):
            raise VerificationFailed(f"{file}: {len(both)} modules stand in {files[0]} too: {some(both)}")
        factors |= part.factors
    architecture, fitted = fit_to_model(factors, str(path))
    return AdapterFile(
        path=path,
        files=tuple(files),
        layouts=tuple(dict.fromkeys(kind for part in read for kind in part.layout.kinds)),
        factors=fitted,
        metadata=read[0].header.metadata,
        dtypes=tuple(sorted({entry.dtype for part in read for entry in part.header.tensors.values()})),
        architecture=architecture,
        alpha_stated=all(part.alpha_stated for part in read),
        old_text_prefix=any(part.layout.old_text_prefix for part in read),
    )


def adapter_files(path: Path) -> list[Path]:
    """The files that make up an adapter: the file itself, or what diffusers and PEFT leave in a folder.

    Raises:
        UsageError: nothing there, only pickles, or several of which none is meant.
    """
    if not path.is_dir():
        return [path]
    for name in (WEIGHT_NAME, PEFT_NAME):
        if (path / name).is_file():
            return [path / name]
    parts = [path / part / PEFT_NAME for part in ("unet", "text_encoder") if (path / part / PEFT_NAME).is_file()]
    if parts:
        return parts
    found = sorted(path.glob("*.safetensors"))
    if len(found) == 1:
        return found
    if found:
        raise UsageError(f"{path}: holds {len(found)} files ({some([file.name for file in found])}); fix: name one")
    pickles = sorted(file.name for file in path.glob("*") if file.suffix in (".bin", ".pt", ".ckpt"))
    only = f"; {some(pickles)} are pickles, which run code when loaded" if pickles else ""
    raise UsageError(f"{path}: no .safetensors file in this folder{only}; fix: the path of a LoRA's .safetensors file")


def fit_to_model(factors: Mapping[str, Factors], source: str) -> tuple[Architecture, dict[str, Factors]]:
    """The model whose layers the factors fit, and the factors in those layers' shapes: some trainers write a 1×1
    convolution as a linear layer, or the other way about.

    Raises:
        VerificationFailed: modules that SD 1.5 has not, or of other widths.
    """
    table = key_table(SD15)
    if unknown := sorted(factors.keys() - table.keys()):
        raise VerificationFailed(f"{source}: {len(unknown)} modules are none of SD 1.5's: {some(unknown)}")
    if not factors:
        raise VerificationFailed(f"{source}: holds no LoRA module")
    misfits: list[str] = []
    for architecture in (TINY, SD15):
        table = key_table(architecture)
        if not factors.keys() <= table.keys():
            continue  # the narrow model has no shortcut where its widths do not change
        fitted = {name: _fitted(factor, table[name]) for name, factor in factors.items()}
        misfits = [_misfit(table[name], factors[name]) for name, factor in fitted.items() if factor is None]
        if not misfits:
            return architecture, {name: factor for name, factor in fitted.items() if factor is not None}
    raise VerificationFailed(f"{source}: {len(misfits)} of {len(factors)} modules do not fit SD 1.5: {some(misfits)}")


@dataclass(frozen=True)
class _Part:
    header: Header
    layout: Layout
    factors: dict[str, Factors]
    alpha_stated: bool


def _read_file(file: Path) -> _Part:
    header = read_header(file)
    layout = read_layout(header, str(file))
    alphas = {keys.parts.get("alpha") for keys in layout.modules.values()}  # diffusers' writer stores them as integers
    odd = sorted(name for name, entry in header.tensors.items() if entry.dtype not in _FLOATS and name not in alphas)
    if odd:
        raise UsageError(f"{file}: {odd[0]} is stored as {header.tensors[odd[0]].dtype}; F32, F16 and BF16 are read")
    configs = {} if KOHYA in layout.kinds else stated_configs(header, file)
    factors = _factors(load_tensors(file), layout, configs, str(file))
    return _Part(header, layout, factors, is_alpha_stated(header, configs, layout))


def _factors(
    state: Mapping[str, torch.Tensor], layout: Layout, configs: Mapping[Component, Config], source: str
) -> dict[str, Factors]:
    broken = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if broken:
        raise VerificationFailed(
            f"{source}: {len(broken)} of {len(state)} tensors hold NaN or infinity: {some(sorted(broken))}"
        )
    found, findings = {}, []
    for name, keys in layout.modules.items():
        down, up = state[keys.parts["down"]], state[keys.parts["up"]]
        if finding := _shape_finding(down.shape, up.shape):
            findings.append(f"{name}: {finding}")
            continue
        alpha = _alpha(state.get(keys.parts.get("alpha", "")), configs.get(keys.component), keys.path, down.shape[0])
        if alpha is None or not math.isfinite(alpha) or alpha == 0:
            findings.append(f"{name}: alpha is {alpha}: sd-scripts takes 0 as the rank, ComfyUI as no effect at all")
            continue
        found[name] = Factors(down, up, alpha)
    if findings:
        raise VerificationFailed(f"{source}: {len(findings)} modules are wrong: {some(findings)}")
    return found


def _alpha(stored: torch.Tensor | None, config: Config | None, path: str, rank: int) -> float | None:
    if stored is not None:
        return float(stored.item()) if stored.numel() == 1 else None
    return float(rank) if config is None else config.alpha_of(path, rank)


def _shape_finding(down: Sequence[int], up: Sequence[int]) -> str:
    if len(down) not in (2, 4) or len(up) not in (2, 4) or up[1] != down[0]:
        return f"down {list(down)} and up {list(up)} do not multiply"
    if not 1 <= down[0] <= MAX_RANK:
        return f"rank {down[0]}, where 1 to {MAX_RANK} make sense"
    return ""


def _fitted(factor: Factors, module: LoraModule) -> Factors | None:
    down, up = module.lora_shapes(factor.rank)
    if _plain(factor.down.shape) != _plain(down) or _plain(factor.up.shape) != _plain(up):
        return None
    return Factors(factor.down.reshape(down), factor.up.reshape(up), factor.alpha)


def _plain(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape without a 1×1 kernel's places."""
    return tuple(shape[:2]) if tuple(shape[2:]) == (1, 1) else tuple(shape)


def _misfit(module: LoraModule, factor: Factors) -> str:
    down, up = module.lora_shapes(factor.rank)
    found = f"down {list(factor.down.shape)} and up {list(factor.up.shape)}"
    return f"{module.kohya} has {found}, its layer takes {list(down)} and {list(up)}"
