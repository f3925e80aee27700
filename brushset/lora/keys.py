"""Which modules a Kohya LoRA names, and where they stand in the model: derived from the model's own tree.

Kohya's name is the module's path with `.` as `_` and a prefix; the way back is a table, since `_` is also part of
names. The table holds every Linear and Conv2d of SD 1.5's UNet and text encoder (354, no two of one name); the 264 of
them that sd-scripts adapts by default (networks/lora.py: Transformer2DModel, CLIPAttention, CLIPMLP) are marked.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from brushset.bases.configs import SD15, Architecture

Component = Literal["unet", "text_encoder"]
Shape = tuple[int, ...]

PREFIXES: Mapping[Component, str] = {"unet": "lora_unet_", "text_encoder": "lora_te_"}
DOWN, UP, ALPHA = "lora_down.weight", "lora_up.weight", "alpha"


@dataclass(frozen=True)
class LoraModule:
    """One layer that an adapter can sit on. `shape` is the layer's weight: [out, in] or [out, in, kh, kw]."""

    kohya: str
    component: Component
    path: str
    shape: Shape
    standard: bool

    @property
    def keys(self) -> tuple[str, str, str]:
        """The file's names of down, up and alpha."""
        return f"{self.kohya}.{DOWN}", f"{self.kohya}.{UP}", f"{self.kohya}.{ALPHA}"

    def lora_shapes(self, dim: int) -> tuple[Shape, Shape]:
        """Shapes of down and up at a rank: the kernel is in down, up is 1 × 1."""
        out_width, in_width, *kernel = self.shape
        return (dim, in_width, *kernel), (out_width, dim, *(1 for _ in kernel))


def kohya_name(component: Component, path: str) -> str:
    """Kohya's name of a module, by its path in diffusers' UNet or transformers' text encoder."""
    return PREFIXES[component] + path.replace(".", "_")


def is_standard(component: Component, path: str) -> bool:
    """Whether sd-scripts adapts the Linear or Conv2d at this path by default (rank on attention blocks and CLIP)."""
    if component == "unet":
        return ".attentions." in f".{path}"
    return ".encoder.layers." in f".{path}" and (".self_attn." in path or ".mlp." in path)


@functools.lru_cache(maxsize=4)
def key_table(architecture: Architecture = SD15) -> Mapping[str, LoraModule]:
    """Kohya name → module, for every Linear and Conv2d of UNet and text encoder, sorted by name.

    Builds the trees on the meta device once a process: some seconds for the imports, no memory for weights.
    """
    import torch

    from brushset.bases.random_sd15 import meta_trees

    trees = meta_trees(architecture)
    found: dict[str, LoraModule] = {}
    for component in PREFIXES:
        for path, module in trees[component].named_modules():
            if not isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
                continue
            name = kohya_name(component, path)
            assert name not in found, f"two modules are called {name}: {found[name].path} and {path}"
            shape = tuple(module.weight.shape)
            found[name] = LoraModule(name, component, path, shape, is_standard(component, path))
    return {name: found[name] for name in sorted(found)}


def standard_modules(architecture: Architecture = SD15, *, text_encoder: bool = True) -> Sequence[LoraModule]:
    """The 264 modules of an ordinary LoRA file, or the UNet's 192 alone, sorted by name."""
    return [
        module
        for module in key_table(architecture).values()
        if module.standard and (text_encoder or module.component == "unet")
    ]


def expected_shapes(dim: int, *, text_encoder: bool = True, architecture: Architecture = SD15) -> dict[str, Shape]:
    """Every key of an ordinary LoRA file with its shape; alpha is a scalar, ()."""
    shapes: dict[str, Shape] = {}
    for module in standard_modules(architecture, text_encoder=text_encoder):
        down, up, alpha = module.keys
        shapes[down], shapes[up] = module.lora_shapes(dim)
        shapes[alpha] = ()
    return shapes
