"""Base models made of random numbers: SD 1.5's tree, full size or narrow, made on the spot from a seed.

They show that the machinery runs, and nothing of quality. Each weight is drawn as N(0, 1 / fan-in), which keeps
activations near 1 through all blocks, so that nothing overflows in fp16 and images come out as noise, not as one grey.
Tensors are drawn one by one from the tree on the meta device. Measured on 2 cores: full size 39 s with the imports,
2.0 GB on disk in fp16, 3.1 GB of memory; narrow 26 MB.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from brushset.bases.configs import (
    ARCHITECTURES,
    Architecture,
    text_encoder_config,
    unet_config,
    vae_config,
    write_configs,
)
from brushset.bases.family import PARTS
from brushset.bases.keep import make_once
from brushset.bases.tensors import save_tensors
from brushset.bases.tokenizer import write_tokenizer
from brushset.errors import EnvironmentProblem, UsageError
from brushset.files import write_json
from brushset.paths import cache_dir
from brushset.protocols import Emit

if TYPE_CHECKING:
    import torch

PREFIX = "random:"
MARKER = "made_by_brushset.json"  # in a folder that holds it, the weights are random
_VERSION = 1  # of the recipe: a change makes a new folder
_SEED = 0
_FREE_BYTES = {"sd15": 3 << 30, "tiny": 64 << 20}


def make_random_base(name: str, emit: Emit) -> Path:
    """The folder of `random:sd15` or `random:tiny` in the cache, made on first use; whole or not there.

    Raises:
        UsageError: no such random model.
        EnvironmentProblem: the disk is full.
    """
    architecture = ARCHITECTURES.get(name.removeprefix(PREFIX))
    if architecture is None:
        known = ", ".join(PREFIX + known for known in ARCHITECTURES)
        raise UsageError(f'base model "{name}": unknown; random models are {known}')
    final = cache_dir() / "bases" / f"random-{architecture.name}-{_VERSION}"

    def write(folder: Path) -> None:
        _check_disk(folder, architecture)
        emit("note", text=f"making {name}, a model of random numbers: it shows that things run, nothing more")
        write_random_base(folder, architecture)

    return make_once(final, write)


def is_random(folder: Path) -> bool:
    """Whether a model folder was made here, of random numbers."""
    return (folder / MARKER).is_file()


def write_random_base(folder: Path, architecture: Architecture, *, seed: int = _SEED) -> None:
    """Writes a diffusers folder with seeded random weights; equal seeds give equal bytes."""
    import torch

    write_configs(folder, architecture)
    write_tokenizer(folder / "tokenizer")
    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, architecture.dtype)
    for part, tree in meta_trees(architecture).items():
        empty = tree.state_dict()
        weights = {name: _draw(tree, name, empty[name].shape, generator).to(dtype) for name in sorted(empty)}
        save_tensors(folder / part / f"{PARTS[part]}.safetensors", weights)
        del weights  # before the next part is drawn: 1.7 GB
    write_json(folder / MARKER, {"random": True, "seed": seed, "version": _VERSION})


def meta_trees(architecture: Architecture) -> dict[str, torch.nn.Module]:
    """The module trees of UNet, VAE and text encoder on the meta device: names and shapes, no memory."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        return {
            "unet": UNet2DConditionModel.from_config(unet_config(architecture)),
            "vae": AutoencoderKL.from_config(vae_config(architecture)),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**text_encoder_config(architecture))),
        }


def _draw(tree: torch.nn.Module, name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """One tensor: norms scale by 1, biases are 0, embeddings are small, all other weights are N(0, 1 / fan-in)."""
    import torch

    owner = tree.get_submodule(name.rpartition(".")[0])
    if name.endswith("bias"):
        return torch.zeros(shape)
    if isinstance(owner, (torch.nn.GroupNorm, torch.nn.LayerNorm)):
        return torch.ones(shape)
    if isinstance(owner, torch.nn.Embedding):
        return torch.randn(shape, generator=generator) * 0.5
    return torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))


def _check_disk(folder: Path, architecture: Architecture) -> None:
    free, wanted = shutil.disk_usage(folder).free, _FREE_BYTES[architecture.name]
    if free < wanted:
        raise EnvironmentProblem(
            f"{folder}: {free >> 20} MiB free, {PREFIX}{architecture.name} wants {wanted >> 20}; "
            "fix: free disk space, or set BRUSHSET_CACHE to another disk"
        )
