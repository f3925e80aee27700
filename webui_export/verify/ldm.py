"""The UNet as A1111 and ComfyUI hold it: LDM's names, by LDM's way of building it.

Source of the structure: openaimodel.py and v1-inference.yaml of CompVis/latent-diffusion (model_channels 320,
channel_mult 1 2 4 4, two residual blocks a level, attention at all levels but the last).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

from webui_export.verify.blocks import Shape, Widths, residual, transformer

RESIDUAL_NAMES = {  # diffusers' name → LDM's
    "conv1": "in_layers.2", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
_RESIDUAL_BLOCKS = 2


@functools.lru_cache(maxsize=4)
def ldm_layers(widths: Widths) -> Mapping[str, Shape]:
    """Name below `diffusion_model` → shape of the weight, for every linear layer and convolution."""
    first, time = widths.unet[0], 4 * widths.unet[0]
    layers: dict[str, Shape] = {
        "time_embed.0": (time, first),
        "time_embed.2": (time, time),
        "input_blocks.0.0": (first, 4, 3, 3),
        "out.2": (4, first, 3, 3),
    }
    skips = _add_input(layers, widths, time)
    last = widths.unet[-1]
    for place in (0, 2):
        _add(layers, f"middle_block.{place}", _residual(last, last, time))
    _add(layers, "middle_block.1", transformer(last, widths.text))
    _add_output(layers, widths, time, skips)
    return layers


def _add_input(layers: dict[str, Shape], widths: Widths, time: int) -> list[int]:
    """The way down; returns the widths that are kept for the way up."""
    number, reads, skips = 1, widths.unet[0], [widths.unet[0]]
    for level, width in enumerate(widths.unet):
        for _ in range(_RESIDUAL_BLOCKS):
            _add_block(layers, f"input_blocks.{number}", (reads, width, time), widths, level)
            number, reads = number + 1, width
            skips.append(width)
        if level < 3:
            layers[f"input_blocks.{number}.0.op"] = (width, width, 3, 3)
            number += 1
            skips.append(width)
    return skips


def _add_output(layers: dict[str, Shape], widths: Widths, time: int, skips: list[int]) -> None:
    number, reads = 0, widths.unet[-1]
    for level in (3, 2, 1, 0):
        width = widths.unet[level]
        for place in range(_RESIDUAL_BLOCKS + 1):
            block = f"output_blocks.{number}"
            _add_block(layers, block, (reads + skips.pop(), width, time), widths, level)
            if level and place == _RESIDUAL_BLOCKS:
                layers[f"{block}.{2 if level < 3 else 1}.conv"] = (width, width, 3, 3)
            number, reads = number + 1, width


def _add_block(layers: dict[str, Shape], block: str, sizes: tuple[int, int, int], widths: Widths, level: int) -> None:
    reads, width, time = sizes
    _add(layers, f"{block}.0", _residual(reads, width, time))
    if level < 3:
        _add(layers, f"{block}.1", transformer(width, widths.text))


def _residual(reads: int, width: int, time: int) -> dict[str, Shape]:
    return {RESIDUAL_NAMES[name]: shape for name, shape in residual(reads, width, time).items()}


def _add(layers: dict[str, Shape], block: str, found: Mapping[str, Shape]) -> None:
    layers.update({f"{block}.{name}": shape for name, shape in found.items()})
