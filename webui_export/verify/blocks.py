"""What all of them agree on: the layers inside a transformer block, a residual block and CLIP, with their shapes.

LDM and diffusers name the blocks themselves differently (ldm.py, invokeai.py). Nothing here is derived from diffusers or
torch, so that a table that is checked with it is not checked with itself: brushset.lora.keys takes its names from the
model's tree, a test compares.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Shape = tuple[int, ...]
TEXT_LAYERS = 12


@dataclass(frozen=True)
class Widths:
    """SD 1.5's widths, or those of brushset's narrow random model, which no UI knows."""

    unet: tuple[int, int, int, int] = (320, 640, 1280, 1280)
    text: int = 768
    text_inner: int = 3072


SD15 = Widths()
NARROW = Widths(unet=(32, 64, 64, 64), text=32, text_inner=64)


@dataclass(frozen=True)
class Applied:
    """What one UI makes of a file: modules that it applies, and what goes wrong, a line each."""

    ui: str
    modules: int
    faults: Sequence[str]


def transformer(width: int, context: int) -> dict[str, Shape]:
    """A block of attention with its projections, as LDM and diffusers both call its layers."""
    square = (width, width)
    inner: dict[str, Shape] = {"ff.net.0.proj": (8 * width, width), "ff.net.2": (width, 4 * width)}
    for attention, reads in (("attn1", width), ("attn2", context)):
        inner |= {f"{attention}.to_q": square, f"{attention}.to_out.0": square}
        inner |= {f"{attention}.to_{part}": (width, reads) for part in "kv"}
    projections: dict[str, Shape] = dict.fromkeys(("proj_in", "proj_out"), (width, width, 1, 1))
    return projections | {f"transformer_blocks.0.{name}": shape for name, shape in inner.items()}


def residual(reads: int, width: int, time: int) -> dict[str, Shape]:
    """A residual block, by diffusers' names; LDM has its own for them."""
    layers: dict[str, Shape] = {
        "conv1": (width, reads, 3, 3),
        "conv2": (width, width, 3, 3),
        "time_emb_proj": (width, time),
    }
    return layers | ({"conv_shortcut": (width, reads, 1, 1)} if reads != width else {})


def text_layers(widths: Widths) -> dict[str, Shape]:
    """CLIP's text encoder, by transformers' names, which every UI keeps."""
    layer: dict[str, Shape] = {
        **{f"self_attn.{part}_proj": (widths.text, widths.text) for part in ("q", "k", "v", "out")},
        "mlp.fc1": (widths.text_inner, widths.text),
        "mlp.fc2": (widths.text, widths.text_inner),
    }
    return {
        f"text_model.encoder.layers.{number}.{name}": shape
        for number in range(TEXT_LAYERS)
        for name, shape in layer.items()
    }


def split_keys(shapes: Mapping[str, Shape]) -> dict[str, dict[str, Shape]]:
    """Module → part → shape, cut at the first dot, as A1111 and InvokeAI cut."""
    modules: dict[str, dict[str, Shape]] = {}
    for key, shape in shapes.items():
        module, _, part = key.partition(".")
        modules.setdefault(module, {})[part] = shape
    return modules


def same_size(parts: Mapping[str, Shape], layer: Shape) -> bool:
    """Whether up · down has the layer's rows and numbers; 1 × 1 kernels may stand there or not."""
    down, up = parts.get("lora_down.weight", ()), parts.get("lora_up.weight", ())
    if len(down) < 2 or len(up) < 2 or up[1] != down[0]:
        return False
    return up[0] == layer[0] and math.prod(down[1:]) == math.prod(layer[1:]) and math.prod(up[2:]) == 1
