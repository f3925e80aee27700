"""What A1111, Forge and their kin make of a file's keys: diffusers' names turned into LDM's by arithmetic on the name.

Everything before the first dot is the module. A name that turns into no layer is dropped without a word (A1111), or
printed, and with more than 12 such tensors the whole file is skipped (Forge). A module whose product has another size
than its layer is counted as an error of the image. Behaviour as in shared facts, of A1111 1.10.1; the code is ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from brushset.lora.kinds import some
from webui_export.verify.blocks import Applied, Shape, Widths, same_size, split_keys, text_layers
from webui_export.verify.ldm import RESIDUAL_NAMES, ldm_layers

FORGE_TOLERATES = 12  # unmatched tensors
_KNOWN_PARTS = {"lora_up.weight", "lora_down.weight", "alpha"}
_BLOCK = r"(attentions|resnets)_(\d)_(.+)"


def apply(shapes: Mapping[str, Shape], widths: Widths) -> Applied:
    """How many modules A1111 applies of a file with these keys, and what it does not say."""
    layers = _layers(widths)
    unknown, wrong, count = [], [], 0
    for module, parts in split_keys(shapes).items():
        layer = layers.get(compvis_name(module))
        if layer is None:
            unknown += [f"{module}.{part}".rstrip(".") for part in parts]
        elif not same_size(parts, layer):
            wrong.append(f"{module} ({_told(parts)}, its layer {list(layer)})")
        else:
            count += 1
            unknown += [f"{module}.{part}" for part in parts.keys() - _KNOWN_PARTS]
    faults = []
    if unknown:
        forge = "Forge skips the whole file" if len(unknown) > FORGE_TOLERATES else "Forge tells it in its log"
        faults.append(f"A1111 drops {len(unknown)} of {len(shapes)} tensors silently, {forge}: {some(sorted(unknown))}")
    if wrong:
        faults.append(f"A1111 cannot add {len(wrong)} modules to their layers: {some(sorted(wrong))}")
    return Applied("A1111", count, faults)


def compvis_name(name: str) -> str:
    """The name under which A1111 looks for a Kohya module; the name itself where no rule knows it."""
    for pattern, turn in _RULES:
        if match := re.fullmatch(pattern, name):
            return turn(match)
    return name


def _layers(widths: Widths) -> dict[str, Shape]:
    unet = {f"diffusion_model_{name.replace('.', '_')}": shape for name, shape in ldm_layers(widths).items()}
    text = {f"transformer_{name.replace('.', '_')}": shape for name, shape in text_layers(widths).items()}
    return unet | text


def _down(match: re.Match[str]) -> str:
    level, kind, place, rest = int(match[1]), match[2], int(match[3]), match[4]
    return f"diffusion_model_input_blocks_{1 + 3 * level + place}_{_inside(kind, rest)}"


def _up(match: re.Match[str]) -> str:
    level, kind, place, rest = int(match[1]), match[2], int(match[3]), match[4]
    return f"diffusion_model_output_blocks_{3 * level + place}_{_inside(kind, rest)}"


def _middle(match: re.Match[str]) -> str:
    kind, place, rest = match[1], int(match[2]), match[3]
    position = 1 if kind == "attentions" else 2 * place
    return f"diffusion_model_middle_block_{position}_{_inside(kind, rest)[2:]}"


def _inside(kind: str, rest: str) -> str:
    if kind == "attentions":
        return f"1_{rest}"
    return f"0_{RESIDUAL_NAMES.get(rest, rest).replace('.', '_')}"


def _upsampler(match: re.Match[str]) -> str:
    level = int(match[1])
    return f"diffusion_model_output_blocks_{3 * level + 2}_{2 if level else 1}_conv"


_RULES: tuple[tuple[str, Callable[[re.Match[str]], str]], ...] = (
    (r"lora_unet_down_blocks_(\d)_" + _BLOCK, _down),
    (r"lora_unet_up_blocks_(\d)_" + _BLOCK, _up),
    (r"lora_unet_mid_block_" + _BLOCK, _middle),
    (r"lora_unet_down_blocks_(\d)_downsamplers_0_conv", lambda m: f"diffusion_model_input_blocks_{3 + 3 * int(m[1])}_0_op"),
    (r"lora_unet_up_blocks_(\d)_upsamplers_0_conv", _upsampler),
    (r"lora_unet_conv_in", lambda _: "diffusion_model_input_blocks_0_0"),
    (r"lora_unet_conv_out", lambda _: "diffusion_model_out_2"),
    (r"lora_unet_time_embedding_linear_([12])", lambda m: f"diffusion_model_time_embed_{2 * int(m[1]) - 2}"),
    (r"lora_te1?_(text_model_encoder_layers_.+)", lambda m: f"transformer_{m[1]}"),
)  # fmt: skip


def _told(parts: Mapping[str, Shape]) -> str:
    down, up = parts.get("lora_down.weight"), parts.get("lora_up.weight")
    return f"down {list(down) if down else 'missing'}, up {list(up) if up else 'missing'}"
