"""What InvokeAI makes of a file: first which model it is for, by the width of one tensor, then a walk through
diffusers' own tree, taking the name apart at its underscores.

A part that no layer class knows is an exception (`Unsupported lora format`); a text encoder under another prefix than
`lora_te_` is dropped without a word; a name that leads nowhere is a warning in the log, and so is a wrong size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from brushset.lora.kinds import some
from webui_export.verify.blocks import (
    Applied,
    Shape,
    Widths,
    residual,
    same_size,
    split_keys,
    text_layers,
    transformer,
)

_PREFIXES = ("lora_unet_", "lora_te_")
_PROBED = re.compile(r"lora_unet_.*attn2_to_[kv]\.lora_down\.weight|lora_te_.*self_attn_[kvq]_proj\.lora_down\.weight")
Tree = dict[str, Any]  # name → subtree, or the layer's shape


def apply(shapes: Mapping[str, Shape], widths: Widths) -> Applied:
    """How many modules InvokeAI patches, and what it says or leaves out."""
    trees = {"lora_unet_": _tree(unet_layers(widths)), "lora_te_": _tree(text_layers(widths))}
    lost: dict[str, list[str]] = {"format": [], "prefix": [], "walk": [], "size": []}
    count = 0
    for module, parts in split_keys(shapes).items():
        prefix = next((prefix for prefix in _PREFIXES if module.startswith(prefix)), None)
        if not {"lora_up.weight", "lora_down.weight"} <= parts.keys():
            lost["format"].append(module)
        elif prefix is None:
            lost["prefix"].append(module)
        elif (layer := walk(trees[prefix], module.removeprefix(prefix))) is None:
            lost["walk"].append(module)
        elif not same_size(parts, layer):
            lost["size"].append(module)
        else:
            count += 1
    told = {
        "format": "InvokeAI raises Unsupported lora format at {}",
        "prefix": "InvokeAI drops {}, silently: it patches under lora_unet_ and lora_te_ alone",
        "walk": "InvokeAI finds no module for {}",
        "size": "InvokeAI skips {}: another size than the layer's",
    }
    faults = [told[why].format(f"{len(names)} modules ({some(sorted(names))})") for why, names in lost.items() if names]
    return Applied("InvokeAI", count, [*_probe(shapes, widths), *faults])


def walk(tree: Tree, flat: str) -> Shape | None:
    """The layer that a name with underscores for dots leads to: at each step the shortest name that is there."""
    here: Any = tree
    name = ""
    for word in flat.split("_"):
        name = f"{name}_{word}" if name else word
        if not isinstance(here, dict):
            return None
        if name in here:
            here, name = here[name], ""
    return here if isinstance(here, tuple) and not name else None


def unet_layers(widths: Widths) -> dict[str, Shape]:
    """The UNet2DConditionModel of SD 1.5 in diffusers: path → shape of the weight."""
    first, time = widths.unet[0], 4 * widths.unet[0]
    layers: dict[str, Shape] = {
        "conv_in": (first, 4, 3, 3),
        "conv_out": (4, first, 3, 3),
        "time_embedding.linear_1": (time, first),
        "time_embedding.linear_2": (time, time),
    }
    reads, kept = first, [first]
    for level, width in enumerate(widths.unet):
        for place in range(2):
            _add(layers, f"down_blocks.{level}.resnets.{place}", residual(reads, width, time))
            if level < 3:
                _add(layers, f"down_blocks.{level}.attentions.{place}", transformer(width, widths.text))
            reads = width
            kept.append(width)
        if level < 3:
            layers[f"down_blocks.{level}.downsamplers.0.conv"] = (width, width, 3, 3)
            kept.append(width)
    for place in range(2):
        _add(layers, f"mid_block.resnets.{place}", residual(reads, reads, time))
    _add(layers, "mid_block.attentions.0", transformer(reads, widths.text))
    return layers | _up_layers(widths, time, kept)


def _up_layers(widths: Widths, time: int, kept: list[int]) -> dict[str, Shape]:
    layers: dict[str, Shape] = {}
    reads = widths.unet[-1]
    for level, width in enumerate(reversed(widths.unet)):
        for place in range(3):
            _add(layers, f"up_blocks.{level}.resnets.{place}", residual(reads + kept.pop(), width, time))
            if level:
                _add(layers, f"up_blocks.{level}.attentions.{place}", transformer(width, widths.text))
            reads = width
        if level < 3:
            layers[f"up_blocks.{level}.upsamplers.0.conv"] = (width, width, 3, 3)
    return layers


def _probe(shapes: Mapping[str, Shape], widths: Widths) -> Sequence[str]:
    """By the input width of the first cross-attention or text layer: 768 is SD 1."""
    found = [shape for key, shape in sorted(shapes.items()) if _PROBED.fullmatch(key) and len(shape) > 1]
    if not found:
        return [
            "InvokeAI cannot tell which model it is for: no attn2_to_k, attn2_to_v or self_attn tensor under its names"
        ]
    width = found[0][1]
    return (
        []
        if width == widths.text
        else [f"InvokeAI takes it for another model: its text width is {width}, SD 1's {widths.text}"]
    )


def _tree(layers: Mapping[str, Shape]) -> Tree:
    tree: Tree = {}
    for path, shape in layers.items():
        *parents, last = path.split(".")
        here = tree
        for parent in parents:
            here = here.setdefault(parent, {})
        here[last] = shape
    return tree


def _add(layers: dict[str, Shape], block: str, found: Mapping[str, Shape]) -> None:
    layers.update({f"{block}.{name}": shape for name, shape in found.items()})
