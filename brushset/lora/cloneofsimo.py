"""The first LoRA files for Stable Diffusion (cloneofsimo/lora): layers are counted, not named.

A file holds `unet:0:up`, `unet:0:down`, …: the nth Linear below the classes listed in its metadata, as
`named_modules()` walked the models of late 2022 (lora_diffusion/lora.py, _find_modules_v2 and save_safeloras; Apache-2.0).
There, down and up blocks were registered before the middle one, a transformer block held its feed-forward layer between
its two attentions, and CLIP's attention was made k, v, q, out. Later diffusers put the feed-forward layer last; which of
the two a file was made with is told by its shapes, since that layer alone is eight times as wide as it reads. Strength
is up · down, unscaled: alpha is the rank.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from brushset.bases.header import Header

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_TEXT = ("k_proj", "v_proj", "q_proj", "out_proj")
_UNET_CLASSES = {"CrossAttention", "Attention"}
_TEXT_LAYERS = 12
_FEED_FORWARD = "ff.net.0.proj"  # GEGLU


def counted_paths(header: Header) -> dict[str, str]:
    """`unet:3` → the layer's path, for a file whose metadata and shapes agree with a known order; else empty."""
    paths: dict[str, str] = {}
    unet, text = _count(header, "unet"), _count(header, "text_encoder")
    if unet:
        classes = _targets(header, "unet")
        if not classes & _UNET_CLASSES or classes - _UNET_CLASSES - {"GEGLU"}:
            return {}
        orders = [_unet_order(between=between) for between in (True, False)]
        if "GEGLU" not in classes:
            orders = [[path for path in orders[0] if not path.endswith(_FEED_FORWARD)]]
        order = next((order for order in orders if _fits(header, order, unet)), None)
        if order is None:
            return {}
        paths |= {f"unet:{number}": path for number, path in enumerate(order)}
    if text:
        order = [
            f"text_model.encoder.layers.{layer}.self_attn.{name}" for layer in range(_TEXT_LAYERS) for name in _TEXT
        ]
        if _targets(header, "text_encoder") != {"CLIPAttention"} or text != len(order):
            return {}
        paths |= {f"text_encoder:{number}": path for number, path in enumerate(order)}
    return paths


def _unet_order(*, between: bool) -> list[str]:
    """All attention layers and GEGLUs of SD 1.5, the feed-forward layer `between` the attentions or after them."""
    owners = [f"down_blocks.{block}.attentions.{number}" for block in range(3) for number in range(2)]
    owners += [f"up_blocks.{block}.attentions.{number}" for block in range(1, 4) for number in range(3)]
    owners.append("mid_block.attentions.0")
    first, second = ([f"{attention}.{name}" for name in _ATTENTION] for attention in ("attn1", "attn2"))
    inner = [*first, _FEED_FORWARD, *second] if between else [*first, *second, _FEED_FORWARD]
    return [f"{owner}.transformer_blocks.0.{path}" for owner in owners for path in inner]


def _fits(header: Header, order: Sequence[str], count: int) -> bool:
    return count == len(order) and all(
        _wide(header, number) == path.endswith(_FEED_FORWARD) for number, path in enumerate(order)
    )


def _wide(header: Header, number: int) -> bool:
    """Whether a layer gives eight times what it reads."""
    up, down = header.shape(f"unet:{number}:up") or (0,), header.shape(f"unet:{number}:down") or (0, 0)
    return len(down) > 1 and up[0] == 8 * down[1]


def _count(header: Header, component: str) -> int:
    return sum(name.startswith(f"{component}:") and name.endswith(":up") for name in header.tensors)


def _targets(header: Header, component: str) -> set[str]:
    """The classes whose layers were trained, as the metadata lists them."""
    try:
        classes = json.loads(header.metadata.get(component, "[]"))
    except ValueError:
        return set()
    return {name for name in classes if isinstance(name, str)} if isinstance(classes, list) else set()
