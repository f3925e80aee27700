"""Which layers of the base are trained, how, and what they are called.

LoRA (arXiv 2106.09685): y = W x + alpha/rank · up(down(x)), W frozen, `up` zero at first. As in sd-scripts' networks.lora
it is put on every linear layer and 1x1 convolution of the UNet's transformers (192) and of the text encoder's attention
and MLP (72). A file's names are the module paths with "_" for "." behind `lora_unet_` or `lora_te_`: diffusers' and
transformers' paths are the ones that sd-scripts' own models have, so nothing is translated.
Weights are kept in float32; under autocast the products are made in the precision of the base.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from brushset.errors import EnvironmentProblem

if TYPE_CHECKING:
    from brushset.native.settings import TrainingKeys

UNET_PREFIX, TEXT_ENCODER_PREFIX = "lora_unet_", "lora_te_"
UNET_MODULES, TEXT_ENCODER_MODULES = 192, 72
"""How many there are in Stable Diffusion 1.5. A release of a library that renames a class would offer fewer."""

Frozen = nn.Linear | nn.Conv2d


class LoraLayer(nn.Module):
    """Stands in the place of a frozen linear layer or 1x1 convolution, and adds its low-rank part."""

    def __init__(self, frozen: Frozen, *, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        self.frozen = frozen
        self.rank, self.alpha = rank, alpha
        self.scale = alpha / rank
        outputs, inputs = frozen.weight.shape[:2]
        kernel = frozen.weight.shape[2:]  # () of a linear layer, (1, 1) of a convolution
        down = torch.empty(rank, inputs, *kernel)
        nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
        device = frozen.weight.device
        self.down = nn.Parameter(down.to(device))
        self.up = nn.Parameter(torch.zeros(outputs, rank, *kernel, device=device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The frozen layer's output plus the low-rank part."""
        apply = F.conv2d if self.down.dim() == 4 else F.linear
        return self.frozen(x) + apply(apply(x, self.down), self.up) * self.scale


class Adapter:
    """The LoRA layers put into one pair of models, by their names in the file."""

    def __init__(self, unet: dict[str, LoraLayer], text_encoder: dict[str, LoraLayer]) -> None:
        self.unet = unet
        self.text_encoder = text_encoder

    @property
    def layers(self) -> dict[str, LoraLayer]:
        """All of them, the text encoder's first, as sd-scripts orders its parameter groups."""
        return {**self.text_encoder, **self.unet}

    def parameters(self) -> Iterator[nn.Parameter]:
        """Everything that is trained."""
        for layer in self.layers.values():
            yield layer.down
            yield layer.up

    def state(self, dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
        """The file's tensors, on the CPU: down, up and alpha of each layer, in `dtype`; None leaves float32."""
        tensors = {}
        for name, layer in self.layers.items():
            tensors[f"{name}.alpha"] = torch.tensor(layer.alpha, dtype=dtype or torch.float32)
            tensors[f"{name}.lora_down.weight"] = layer.down.detach().to("cpu", dtype, copy=True).contiguous()
            tensors[f"{name}.lora_up.weight"] = layer.up.detach().to("cpu", dtype, copy=True).contiguous()
        return tensors


def attach_adapter(unet: Any, text_encoder: Any | None, training: TrainingKeys, generator: torch.Generator) -> Adapter:
    """Freezes both models and puts LoRA layers into them; without `text_encoder`, into the UNet alone.

    Raises:
        EnvironmentProblem: the models do not offer Stable Diffusion 1.5's 192 and 72 layers.
    """
    from diffusers.models.transformers.transformer_2d import Transformer2DModel
    from transformers.models.clip.modeling_clip import CLIPMLP, CLIPAttention

    make = partial(
        LoraLayer,
        rank=training.network_dim,
        alpha=training.network_alpha or training.network_dim,  # sd-scripts takes 0 as "no scaling"
        generator=generator,
    )
    text_layers = {}
    if text_encoder is not None:
        text_layers = _put_layers(text_encoder, (CLIPAttention, CLIPMLP), TEXT_ENCODER_PREFIX, make)
        _expect(text_encoder, text_layers, TEXT_ENCODER_MODULES)
    unet_layers = _put_layers(unet, (Transformer2DModel,), UNET_PREFIX, make)
    _expect(unet, unet_layers, UNET_MODULES)
    return Adapter(unet_layers, text_layers)


def _put_layers(
    model: nn.Module, owners: tuple[type[nn.Module], ...], prefix: str, make: Callable[[Frozen], LoraLayer]
) -> dict[str, LoraLayer]:
    """Replaces all linear layers and 1x1 convolutions below modules of the given classes."""
    model.requires_grad_(False)
    frozen: dict[str, Frozen] = {}
    for path, owner in model.named_modules():
        if isinstance(owner, owners):
            for inner, child in owner.named_modules():
                if isinstance(child, nn.Linear) or (isinstance(child, nn.Conv2d) and child.kernel_size == (1, 1)):
                    frozen[f"{path}.{inner}"] = child
    layers = {path: make(child) for path, child in frozen.items()}
    for path, layer in layers.items():
        model.set_submodule(path, layer)
    return {prefix + path.replace(".", "_"): layer for path, layer in layers.items()}


def _expect(model: nn.Module, layers: dict[str, LoraLayer], count: int) -> None:
    if len(layers) != count:
        raise EnvironmentProblem(
            f"{type(model).__name__} offers {len(layers)} layers for LoRA, Stable Diffusion 1.5 has {count}; "
            "install the versions of uv.lock, or choose another base"
        )
