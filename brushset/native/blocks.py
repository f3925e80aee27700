"""The models' blocks as they are trained: the same arithmetic in fewer operations.

diffusers' and transformers' blocks serve many models. Of those in Stable Diffusion 1.5 a step needs less:
- q, k and v of one input are one product; k and v of all 16 cross-attentions read the same text, so they are one too;
- the part of the 22 residual blocks that knows the timestep is frozen: a row of a table of 1000, not an embedding, two
  layers and 22 projections a step (20,160 columns: 40 MB in bf16, in place of the 50 MB of those projections);
- no division by scale factors of 1 (107 passes over activations), no copy to join the halves of GEGLU's gradient.
- activations lie as [N, h, w, channels] throughout, so none is copied from one layout to another on a CPU. On a GPU torch's
  group norm knows [N, channels, h, w] alone (pytorch/pytorch#111824) and copies; only compiled blocks are spared that.
Left out: keys and values of cached captions (3.8 MB each in bf16, for 0.2 % of a step's arithmetic, and the low-rank
part would be added to a copy of them).
Measured: `tests/test_native_operations.py`, and `python bench/train.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from brushset.native.lora import LoraLayer
from brushset.native.objective import TIMESTEPS
from brushset.native.product import Product


def shorten_unet(unet: Any, layers: Mapping[str, LoraLayer]) -> Product:
    """Replaces attention, residual blocks and GEGLU; returns the product that makes all keys and values of the text, which
    the UNet takes as `cross_attention_kwargs={"text": product(states)}`.
    """
    from diffusers.models.activations import GEGLU
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    tabulate_timesteps(unet)
    place = 0
    for module in list(unet.modules()):
        if getattr(module, "is_cross_attention", None) is None:
            continue
        if module.is_cross_attention:
            module.set_processor(CrossAttention(place))
            place += 1
        else:
            module.set_processor(SelfAttention(Product((module.to_q, module.to_k, module.to_v))))
    for path, module in list(unet.named_modules()):
        if isinstance(module, Transformer2DModel):
            unet.set_submodule(path, Transformer(module))
        elif isinstance(module, GEGLU):
            unet.set_submodule(path, Gate(module.proj))
    return Product(text_projections(layers))


def text_projections(layers: Mapping[str, LoraLayer]) -> list[LoraLayer]:
    """The layers that read the text: to_k and to_v of each cross-attention, in the order of the UNet's modules."""
    return [layer for name, layer in layers.items() if name.endswith(("attn2_to_k", "attn2_to_v"))]


class SelfAttention:
    """In the place of diffusers' AttnProcessor2_0; SD 1.5 has no mask, norm, residual or scale factor there."""

    def __init__(self, product: Product) -> None:
        self.product = product

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        *_: None,
        text: object = None,  # noqa: ARG002 - diffusers warns where it is not among the names
        **__: None,
    ) -> torch.Tensor:
        """Attention of tokens [N, tokens, width] to themselves."""
        made: torch.Tensor = attn.to_out[0](attend(self.product(hidden_states), attn.heads))
        return made


class CrossAttention:
    """The same for attention to the text, whose keys and values are made beforehand. `place` counts cross-attentions."""

    def __init__(self, place: int) -> None:
        self._place = place

    def __call__(
        self, attn: Any, hidden_states: torch.Tensor, *_: object, text: Sequence[torch.Tensor], **__: object
    ) -> torch.Tensor:
        """Attention of tokens [N, tokens, width] to the text."""
        key, value = text[2 * self._place : 2 * self._place + 2]
        made: torch.Tensor = attn.to_out[0](attend((attn.to_q(hidden_states), key, value), attn.heads))
        return made


class TextAttention(nn.Module):
    """In the place of CLIPAttention: causal, and without padding masks, as Stable Diffusion uses it."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = attention.q_proj, attention.k_proj, attention.v_proj
        self.out_proj, self._heads = attention.out_proj, attention.num_heads
        self._order = [key for key, _ in attention.named_children() if key != "out_proj"]
        self._product = Product([getattr(attention, key) for key in self._order])

    def forward(self, hidden_states: torch.Tensor, *_: object, **__: object) -> tuple[torch.Tensor, None]:
        """States [N, tokens, width] → states."""
        made = dict(zip(self._order, self._product(hidden_states), strict=True))
        states = attend([made[f"{key}_proj"] for key in "qkv"], self._heads, causal=True)
        return self.out_proj(states), None


def shorten_text_encoder(text_encoder: Any) -> None:
    """Replaces the attention of an encoder whose layers are LoRA layers, and its activation where that is CLIP's."""
    from transformers.activations import QuickGELUActivation

    for layer in text_encoder.text_model.encoder.layers:
        layer.self_attn = TextAttention(layer.self_attn)
        if isinstance(layer.mlp.activation_fn, QuickGELUActivation):
            layer.mlp.activation_fn = QuickGelu()


class QuickGelu(nn.Module):
    """x · σ(1.702 x) (arXiv 1606.08415), in four operations with its gradient in place of eight: it is SiLU of 1.702 x,
    over 1.702, and the gradients of the two are the same number.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Elementwise."""
        made: torch.Tensor = _QuickGelu.apply(x)
        return made


class _QuickGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        widened = x * 1.702
        ctx.save_for_backward(widened)
        return F.silu(widened).div_(1.702)

    @staticmethod
    def backward(ctx: Any, given: torch.Tensor) -> torch.Tensor:
        return torch.ops.aten.silu_backward(given, ctx.saved_tensors[0])


def attend(parts: Sequence[torch.Tensor], heads: int, *, causal: bool = False) -> torch.Tensor:
    """Scaled dot-product attention of q, k and v [N, tokens, width], by heads; [N, tokens, width]."""
    q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in parts)
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)


def tabulate_timesteps(unet: Any) -> None:
    """Puts Residual in the place of each ResnetBlock2D, and the table in the place of the time embedding."""
    from diffusers.models.resnet import ResnetBlock2D

    found = {path: module for path, module in unet.named_modules() if isinstance(module, ResnetBlock2D)}
    with torch.no_grad():
        steps = torch.arange(TIMESTEPS, device=unet.device)
        embedded = F.silu(unet.time_embedding(unet.time_proj(steps).to(unet.dtype)))
        parts = [block.time_emb_proj(embedded) for block in found.values()]
    start = 0
    for (path, block), part in zip(found.items(), parts, strict=True):
        unet.set_submodule(path, Residual(block, start))
        start += part.shape[1]
    unet.time_proj, unet.time_embedding = TimeTable(torch.cat(parts, dim=1)), _Same()


class TimeTable(nn.Module):
    """Timesteps [N] → what each residual block adds, [N, columns]."""

    table: torch.Tensor

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table, persistent=False)

    def forward(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Rows of the table."""
        return self.table.index_select(0, timesteps)


class _Same(nn.Module):
    """The time embedding's second half, which the table holds already."""

    def forward(self, columns: torch.Tensor, _condition: None = None) -> torch.Tensor:
        return columns


class Residual(nn.Module):
    """ResnetBlock2D of Stable Diffusion 1.5, whose columns of the time table begin at `start`."""

    def __init__(self, block: Any, start: int) -> None:
        super().__init__()
        self.norm1, self.conv1, self.norm2, self.conv2 = block.norm1, block.conv1, block.norm2, block.conv2
        self.conv_shortcut = block.conv_shortcut
        self._columns = slice(start, start + block.out_channels)

    def forward(self, x: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Image x [N, in, h, w], columns as of TimeTable → [N, out, h, w]."""
        inner = self.conv1(F.silu(self.norm1(x))) + columns[:, self._columns, None, None]
        inner = self.conv2(F.silu(self.norm2(inner)))
        return inner + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Transformer(nn.Module):
    """Transformer2DModel of Stable Diffusion 1.5: what lies as [N, h, w, channels] goes in and comes out so."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.norm, self.proj_in, self.proj_out = whole.norm, whole.proj_in, whole.proj_out
        self.transformer_blocks = whole.transformer_blocks
        self._run = forget_activations if whole.gradient_checkpointing else _run

    def forward(
        self, x: torch.Tensor, states: torch.Tensor | None = None, *, encoder_hidden_states: torch.Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None, **_: object,
    ) -> tuple[torch.Tensor]:  # fmt: skip
        """Image x [N, channels, h, w] → the same. diffusers names the states; without names, they come second."""
        states = encoder_hidden_states if states is None else states
        tokens = self.proj_in(self.norm(x).permute(0, 2, 3, 1).flatten(1, 2))
        for block in self.transformer_blocks:
            tokens = self._run(
                block, tokens, encoder_hidden_states=states, cross_attention_kwargs=cross_attention_kwargs
            )
        return (self.proj_out(tokens).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2) + x,)


def _run(block: nn.Module, *given: Any, **named: Any) -> Any:
    return block(*given, **named)


def forget_activations(block: nn.Module, *given: Any, **named: Any) -> Any:
    """Gradient checkpointing (arXiv 1604.06174). Nothing drops out, so no random state is kept, which a CUDA graph could
    not read.
    """
    return checkpoint(block, *given, use_reentrant=False, preserve_rng_state=False, **named)


class Gate(nn.Module):
    """GEGLU (arXiv 2002.05202): one half of the projection, times the GELU of the other."""

    def __init__(self, proj: nn.Module) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, tokens, width] → [N, tokens, inner]."""
        projected = self.proj(x)
        if torch.compiler.is_compiling():  # which fuses it by itself
            value, gate = projected.chunk(2, dim=-1)
            return value * F.gelu(gate)
        gated: torch.Tensor = GatedGelu.apply(projected)
        return gated


class GatedGelu(torch.autograd.Function):
    """Both halves of the gradient are written where the projection's backward reads them."""

    @staticmethod
    def forward(ctx: Any, projected: torch.Tensor) -> torch.Tensor:
        value, gate = projected.chunk(2, dim=-1)
        opened = F.gelu(gate)
        ctx.save_for_backward(projected, opened)
        return value * opened

    @staticmethod
    def backward(ctx: Any, given: torch.Tensor) -> torch.Tensor:
        projected, opened = ctx.saved_tensors
        value, gate = projected.chunk(2, dim=-1)
        made = torch.empty_like(projected)
        to_value, to_gate = made.chunk(2, dim=-1)
        torch.mul(given, opened, out=to_value)
        torch.ops.aten.gelu_backward.grad_input(given * value, gate, approximate="none", grad_input=to_gate)
        return made
