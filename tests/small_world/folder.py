"""The small world's base model as it is kept, weights.safetensors of 4 MB, and as it is used, a diffusers folder.

Kept are: of UNet and text encoder, each matrix as int8 with a scale for each of its rows, and float16 for the rest and for
the VAE; of the token table only the rows that were trained, as the others come from a seed. `unpack` writes the folder
that `--base-model` takes. It has SD 1.5's tree at the widths of `random:tiny`, so that whatever reads LoRA files knows it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from brushset.bases.configs import TINY, write_configs
from brushset.bases.family import PARTS
from brushset.bases.tensors import load_tensors, save_tensors
from brushset.files import write_json
from small_world.prior import TABLE, draw_table, small_text_config, small_unet_config
from small_world.vae import small_vae_config

if TYPE_CHECKING:
    import torch

WEIGHTS = Path(__file__).with_name("weights.safetensors")
_ROWS, _SEED, _SCALE = "table.rows", "table.seed", ".scale"


def pack(parts: dict[str, dict[str, torch.Tensor]], known: torch.Tensor, seed: int, file: Path = WEIGHTS) -> None:
    """Writes the kept form. `parts` are state dicts by the names of PARTS, `known` the table's rows that were trained."""
    import torch

    kept: dict[str, torch.Tensor] = {_ROWS: known, _SEED: torch.tensor(seed)}
    for part, state in parts.items():
        for name, weight in state.items():
            key = f"{part}/{name}"
            if name == TABLE:
                kept[key] = weight[known].half()
            elif part == "vae" or weight.dim() < 2 or not weight.is_floating_point():
                kept[key] = weight.half() if weight.is_floating_point() else weight
            else:
                scale = (weight.flatten(1).abs().amax(1) / 127).clamp(min=1e-8)
                kept[key + _SCALE] = scale.half()
                kept[key] = (weight / _along(scale.half().float(), weight)).round().clamp(-127, 127).to(torch.int8)
    save_tensors(file, {name: tensor.contiguous() for name, tensor in kept.items()})


def unpack(folder: Path, file: Path = WEIGHTS) -> Path:
    """Writes the diffusers folder, weights in float16; the tokenizer is CLIP's, which brushset.bases.tokenizer makes."""
    write_configs(folder, TINY)
    write_json(folder / "unet" / "config.json", small_unet_config())
    write_json(folder / "vae" / "config.json", small_vae_config())
    write_json(folder / "text_encoder" / "config.json", small_text_config())
    kept = load_tensors(file)
    for part, stem in PARTS.items():
        save_tensors(folder / part / f"{stem}.safetensors", _part(kept, part))
    return folder


def _part(kept: dict[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    state: dict[str, Any] = {}
    for key, weight in kept.items():
        name = key.removeprefix(f"{part}/")
        if name == key or key.endswith(_SCALE):
            continue
        if name == TABLE:
            table = draw_table(int(kept[_SEED]))
            table[kept[_ROWS]] = weight.float()
            state[name] = table.half()
        elif key + _SCALE in kept:
            state[name] = (weight.float() * _along(kept[key + _SCALE].float(), weight)).half()
        else:
            state[name] = weight
    return state


def _along(scale: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A number a row, shaped to multiply its row."""
    return scale.view(-1, *[1] * (weight.dim() - 1))
