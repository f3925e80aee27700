"""Which layers of the base are trained, how, and what they are called.

LoRA (arXiv 2106.09685): y = W x + alpha/rank · up(down(x)), W frozen, `up` zero at first. As in sd-scripts' networks.lora
it is put on every linear layer and 1x1 convolution of the UNet's transformers (192) and of the text encoder's attention
and MLP (72). A file's names are the module paths with "_" for "." behind `lora_unet_` or `lora_te_`: diffusers' and
transformers' paths are the ones that sd-scripts' own models have, so nothing is translated.
Weights are kept in float32; the products are made in the precision of the base (brushset.native.flat, .product).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from brushset.errors import EnvironmentProblem
from brushset.native.product import Frozen, Product, Routing

if TYPE_CHECKING:
    from brushset.native.settings import TrainingKeys

UNET_PREFIX, TEXT_ENCODER_PREFIX = "lora_unet_", "lora_te_"
UNET_MODULES, TEXT_ENCODER_MODULES = 192, 72
"""How many there are in Stable Diffusion 1.5. A release of a library that renames a class would offer fewer."""


@dataclass(frozen=True)
class Shape:
    """What one adapter is: its rank, its alpha, and the generator that draws its A."""

    rank: int
    alpha: float
    generator: torch.Generator

    @classmethod
    def of(cls, training: TrainingKeys, generator: torch.Generator) -> Shape:
        """What the settings ask for; sd-scripts takes an alpha of 0 as "no scaling"."""
        return cls(training.network_dim, training.network_alpha or training.network_dim, generator)


class LoraLayer(nn.Module):
    """Stands in the place of a frozen linear layer or 1x1 convolution, and adds the low-rank parts of K adapters:
    `down` [K, r, in] and `up` [K, out, r], where r is the largest rank. Each adapter's `down` is drawn by its own
    generator, `up` is zero. Rows of A and columns of B beyond an adapter's own rank are zero: each has the other as a
    factor of its gradient, so they stay zero, and add nothing to norms, moments and weight decay.
    """

    def __init__(self, frozen: Frozen, shapes: Sequence[Shape], routing: Routing) -> None:
        super().__init__()
        self.frozen = frozen
        self.ranks, self.alphas = [each.rank for each in shapes], [each.alpha for each in shapes]
        self.scales = [each.alpha / each.rank for each in shapes]
        self.routing = routing
        outputs, inputs = frozen.weight.shape[:2]
        self.kernel = tuple(frozen.weight.shape[2:])  # () of a linear layer, (1, 1) of a convolution
        down = torch.zeros(len(shapes), max(self.ranks), inputs)
        for row, shape in enumerate(shapes):
            nn.init.kaiming_uniform_(down[row, : shape.rank], a=math.sqrt(5), generator=shape.generator)
        weight = frozen.weight
        wide = torch.promote_types(weight.dtype, torch.float32)
        up = torch.zeros(len(shapes), outputs, max(self.ranks), device=weight.device, dtype=wide)
        self.place(down.to(weight.device, wide), up)

    def place(self, down: torch.Tensor, up: torch.Tensor, *, trained: bool = True) -> None:
        """Takes its weights, and where they are kept in full precision unless told otherwise."""
        self.down, self.up = nn.Parameter(down, requires_grad=trained), nn.Parameter(up, requires_grad=trained)
        self.down_master, self.up_master = self.down.detach(), self.up.detach()
        self.product = Product((self,))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The frozen layer's output plus the low-rank part. x: [N, tokens, in], or [N, in, h, w] of a convolution."""
        if x.dim() == 4:
            return self.product(x.permute(0, 2, 3, 1))[0].permute(0, 3, 1, 2)
        return self.product(x)[0]

    def frozen_product(self, x: torch.Tensor) -> torch.Tensor:
        """The frozen layer's output alone. x: [N, …, in]."""
        return F.linear(x, self.frozen.weight.view(self.frozen.weight.shape[:2]), self.frozen.bias)


class Adapter:
    """One adapter: its row of the LoRA layers put into one pair of models, by their names in the file."""

    def __init__(self, unet: Mapping[str, LoraLayer], text_encoder: Mapping[str, LoraLayer], row: int = 0) -> None:
        self.unet, self.text_encoder, self.row = dict(unet), dict(text_encoder), row

    @property
    def layers(self) -> dict[str, LoraLayer]:
        """All of them, the text encoder's first, as sd-scripts orders its parameter groups."""
        return {**self.text_encoder, **self.unet}

    def state(self, dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
        """The file's tensors, on the CPU: down, up and alpha of each layer, in `dtype`; None leaves float32."""
        tensors = {}
        for name, layer in self.layers.items():
            tensors[f"{name}.alpha"] = torch.tensor(layer.alphas[self.row], dtype=dtype or torch.float32)
            for key, weight in (("lora_down", layer.down_master), ("lora_up", layer.up_master)):
                copied = self._own(layer, key, weight).to("cpu", dtype, copy=True).contiguous()
                tensors[f"{name}.{key}.weight"] = _as_kernel(copied, layer)
        return tensors

    def gradients(self) -> dict[str, torch.Tensor]:
        """The gradients of what is trained, by the file's names and in its shapes."""
        return {
            f"{name}.{key}.weight": _as_kernel(self._own(layer, key, weight.grad), layer)
            for name, layer in self.layers.items()
            for key, weight in (("lora_down", layer.down), ("lora_up", layer.up))
            if weight.grad is not None
        }

    def _own(self, layer: LoraLayer, key: str, stacked: torch.Tensor) -> torch.Tensor:
        """This adapter's part of A [K, r, in] or B [K, out, r], at its own rank."""
        rank = layer.ranks[self.row]
        return stacked[self.row, :rank] if key == "lora_down" else stacked[self.row, :, :rank]


def _as_kernel(matrix: torch.Tensor, layer: LoraLayer) -> torch.Tensor:
    return matrix.reshape(*matrix.shape, *layer.kernel)


def attach_adapters(unet: Any, text_encoder: Any | None, shapes: Sequence[Shape]) -> list[Adapter]:
    """Freezes both models and puts LoRA layers into them, for one adapter a shape; without `text_encoder`, into the UNet
    alone.

    Raises:
        EnvironmentProblem: the models do not offer Stable Diffusion 1.5's 192 and 72 layers.
    """
    from diffusers.models.transformers.transformer_2d import Transformer2DModel
    from transformers.models.clip.modeling_clip import CLIPMLP, CLIPAttention

    make = partial(LoraLayer, shapes=shapes, routing=Routing(count=len(shapes)))
    text_layers = {}
    if text_encoder is not None:
        text_layers = _put_layers(text_encoder, (CLIPAttention, CLIPMLP), TEXT_ENCODER_PREFIX, make)
        _expect(text_encoder, text_layers, TEXT_ENCODER_MODULES)
    unet_layers = _put_layers(unet, (Transformer2DModel,), UNET_PREFIX, make)
    _expect(unet, unet_layers, UNET_MODULES)
    _use_tokens(unet, Transformer2DModel)
    return [Adapter(unet_layers, text_layers, row) for row in range(len(shapes))]


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


def _use_tokens(unet: Any, kind: type[nn.Module]) -> None:
    """Lets transformers project tokens, as those of Stable Diffusion 2 do: a 1x1 convolution is a linear layer there, and
    what lies as [N, h, w, channels] need not be turned.
    """
    for module in unet.modules():
        if isinstance(module, kind):
            module.use_linear_projection = True  # type: ignore[assignment]


def _expect(model: nn.Module, layers: dict[str, LoraLayer], count: int) -> None:
    if len(layers) != count:
        raise EnvironmentProblem(
            f"{type(model).__name__} offers {len(layers)} layers for LoRA, Stable Diffusion 1.5 has {count}; "
            "install the versions of uv.lock, or choose another base"
        )
