"""A diffusers folder of SD 1.5's tree as one checkpoint in the original names, for tests of single-file loading.

The names follow diffusers' scripts/convert_diffusers_to_original_stable_diffusion.py (Apache-2.0).
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file

_UNET_TOP = {
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "conv_in.": "input_blocks.0.0.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
    "mid_block.attentions.0.": "middle_block.1.",
    "mid_block.resnets.0.": "middle_block.0.",
    "mid_block.resnets.1.": "middle_block.2.",
}
_RESNET = {
    ".norm1.": ".in_layers.0.",
    ".conv1.": ".in_layers.2.",
    ".norm2.": ".out_layers.0.",
    ".conv2.": ".out_layers.3.",
    ".time_emb_proj.": ".emb_layers.1.",
    ".conv_shortcut.": ".skip_connection.",
}
_VAE_TOP = {
    "conv_shortcut.": "nin_shortcut.",
    "conv_norm_out.": "norm_out.",
    "mid_block.attentions.0.": "mid.attn_1.",
    "mid_block.resnets.0.": "mid.block_1.",
    "mid_block.resnets.1.": "mid.block_2.",
}
_VAE_ATTENTION = {"group_norm.": "norm.", "to_q.": "q.", "to_k.": "k.", "to_v.": "v.", "to_out.0.": "proj_out."}


def write_single_file(folder: Path, target: Path) -> Path:
    """Writes UNet, VAE and text encoder of a diffusers folder as one checkpoint."""
    weights = {}
    for name, tensor in load_file(folder / "unet" / "diffusion_pytorch_model.safetensors").items():
        weights[f"model.diffusion_model.{_unet_name(name)}"] = tensor
    for name, tensor in load_file(folder / "vae" / "diffusion_pytorch_model.safetensors").items():
        renamed = _vae_name(name)
        convolution = "attn_1" in renamed and renamed.endswith("weight") and ".norm." not in renamed
        weights[f"first_stage_model.{renamed}"] = tensor[:, :, None, None].contiguous() if convolution else tensor
    for name, tensor in load_file(folder / "text_encoder" / "model.safetensors").items():
        weights[f"cond_stage_model.transformer.{name}"] = tensor
    save_file(weights, target, metadata={"format": "pt"})
    return target


def _unet_name(name: str) -> str:
    table = dict(_UNET_TOP)
    for block in range(4):
        for layer in range(3):
            table[f"down_blocks.{block}.resnets.{layer}."] = f"input_blocks.{3 * block + layer + 1}.0."
            table[f"down_blocks.{block}.attentions.{layer}."] = f"input_blocks.{3 * block + layer + 1}.1."
            table[f"up_blocks.{block}.resnets.{layer}."] = f"output_blocks.{3 * block + layer}.0."
            table[f"up_blocks.{block}.attentions.{layer}."] = f"output_blocks.{3 * block + layer}.1."
        table[f"down_blocks.{block}.downsamplers.0.conv."] = f"input_blocks.{3 * (block + 1)}.0.op."
        table[f"up_blocks.{block}.upsamplers.0."] = f"output_blocks.{3 * block + 2}.{1 if block == 0 else 2}."
    renamed = _replace(name, table)
    return _replace(renamed, _RESNET) if "resnets" in name else renamed


def _vae_name(name: str) -> str:
    table = dict(_VAE_TOP)
    for block in range(4):
        for layer in range(3):
            table[f"encoder.down_blocks.{block}.resnets.{layer}."] = f"encoder.down.{block}.block.{layer}."
            table[f"decoder.up_blocks.{block}.resnets.{layer}."] = f"decoder.up.{3 - block}.block.{layer}."
        table[f"down_blocks.{block}.downsamplers.0."] = f"down.{block}.downsample."
        table[f"up_blocks.{block}.upsamplers.0."] = f"up.{3 - block}.upsample."
    renamed = _replace(name, table)
    return _replace(renamed, _VAE_ATTENTION) if "attentions" in name else renamed


def _replace(name: str, table: dict[str, str]) -> str:
    for old, new in table.items():
        name = name.replace(old, new) if f".{old.lstrip('.')}" in f".{name}" else name
    return name
