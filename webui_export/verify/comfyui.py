"""What ComfyUI makes of a file's keys: the other way about, from its model's layers to the names that it would take.

It makes a table of names for every layer that it has, and takes from the file what it finds under them; what is left is
`lora key not loaded` in its log, and the image comes out without it. Only Kohya's names are in this table: of the others
it takes half (measured: 128 attention projections of a diffusers file are lost).
"""

from __future__ import annotations

from collections.abc import Mapping

from brushset.lora.kinds import some
from webui_export.verify.blocks import TEXT_LAYERS, Applied, Shape, Widths, same_size, text_layers
from webui_export.verify.ldm import RESIDUAL_NAMES, ldm_layers

_PARTS = ("lora_up.weight", "lora_down.weight", "alpha")


def apply(shapes: Mapping[str, Shape], widths: Widths) -> Applied:
    """How many modules ComfyUI patches, which keys it leaves, and which products do not fit."""
    loaded: set[str] = set()
    wrong, count = [], 0
    for name, layer in accepted_names(widths).items():
        parts = {part: shapes[f"{name}.{part}"] for part in _PARTS if f"{name}.{part}" in shapes}
        if "lora_up.weight" not in parts or "lora_down.weight" not in parts:
            continue
        loaded |= {f"{name}.{part}" for part in parts}
        if same_size(parts, layer):
            count += 1
        else:
            wrong.append(f"{name} is for a layer of {list(layer)}")
    faults = []
    if left := sorted(shapes.keys() - loaded):
        faults.append(f"ComfyUI: lora key not loaded, {len(left)} of {len(shapes)}: {some(left)}")
    if wrong:
        faults.append(f"ComfyUI: ERROR lora when sampling, {len(wrong)} modules: {some(sorted(wrong))}")
    return Applied("ComfyUI", count, faults)


def accepted_names(widths: Widths) -> dict[str, Shape]:
    """Kohya name → shape of the layer that ComfyUI patches by it."""
    layers = ldm_layers(widths)
    names = {f"lora_unet_{ours}": layers[theirs] for ours, theirs in _pairs() if theirs in layers}
    text = text_layers(widths)
    for number in range(TEXT_LAYERS):
        stem = f"text_model.encoder.layers.{number}"
        for layer in ("mlp.fc1", "mlp.fc2", *(f"self_attn.{part}_proj" for part in ("q", "k", "v", "out"))):
            for prefix in ("lora_te", "lora_te1"):
                names[f"{prefix}_{stem}.{layer}".replace(".", "_")] = text[f"{stem}.{layer}"]
    return names


def _pairs() -> list[tuple[str, str]]:
    """(diffusers' name with underscores, LDM's name), of every layer that any block could have."""
    pairs = [
        ("conv_in", "input_blocks.0.0"), ("conv_out", "out.2"),
        ("time_embedding_linear_1", "time_embed.0"), ("time_embedding_linear_2", "time_embed.2"),
        *_block_pairs("mid_block", 0, "middle_block.1", ("middle_block.0", "middle_block.2")),
    ]  # fmt: skip
    for level in range(4):
        for place in range(3):
            way_down, way_up = f"input_blocks.{3 * level + place + 1}", f"output_blocks.{3 * level + place}"
            if place < 2:
                pairs += _block_pairs(f"down_blocks_{level}", place, f"{way_down}.1", (f"{way_down}.0",))
            pairs += _block_pairs(f"up_blocks_{level}", place, f"{way_up}.1", (f"{way_up}.0",))
        pairs.append((f"down_blocks_{level}_downsamplers_0_conv", f"input_blocks.{3 * level + 3}.0.op"))
        pairs.append(
            (f"up_blocks_{level}_upsamplers_0_conv", f"output_blocks.{3 * level + 2}.{2 if level else 1}.conv")
        )
    return pairs


def _block_pairs(block: str, place: int, attention: str, residuals: tuple[str, ...]) -> list[tuple[str, str]]:
    inner = ["proj_in", "proj_out", "transformer_blocks.0.ff.net.0.proj", "transformer_blocks.0.ff.net.2"]
    inner += [
        f"transformer_blocks.0.{which}.{part}"
        for which in ("attn1", "attn2")
        for part in ("to_q", "to_k", "to_v", "to_out.0")
    ]
    pairs = [(f"{block}_attentions_{place}_{name.replace('.', '_')}", f"{attention}.{name}") for name in inner]
    for offset, theirs in enumerate(residuals):
        pairs += [
            (f"{block}_resnets_{place + offset}_{ours}", f"{theirs}.{ldm}") for ours, ldm in RESIDUAL_NAMES.items()
        ]
    return pairs
