"""The configs of Stable Diffusion 1.5's parts, as they stand in the published model folder, and a narrow twin.

The narrow one has every module of the full one, so the same 264 LoRA modules, in 26 MB with its tokenizer: what is
proven on it of keys and arithmetic holds for the full one. Its widths are multiples of 32, the group norms' number of
groups. Source of the values: the config.json files of stable-diffusion-v1-5/stable-diffusion-v1-5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brushset.files import write_json

Config = dict[str, Any]


@dataclass(frozen=True)
class Architecture:
    """SD 1.5's tree at some widths. Immutable and hashable, so that what is derived from it can be kept."""

    name: str
    unet_widths: tuple[int, int, int, int]
    vae_widths: tuple[int, int, int, int]
    text_width: int
    text_inner_width: int
    text_heads: int
    dtype: str = field(default="float32")

    @property
    def narrow(self) -> bool:
        """Whether the widths are not SD 1.5's own."""
        return self.unet_widths != SD15.unet_widths


SD15 = Architecture("sd15", (320, 640, 1280, 1280), (128, 256, 512, 512), 768, 3072, 12, dtype="float16")
TINY = Architecture("tiny", (32, 64, 64, 64), (32, 32, 64, 64), 32, 64, 4)
ARCHITECTURES: Mapping[str, Architecture] = {SD15.name: SD15, TINY.name: TINY}


def unet_config(architecture: Architecture) -> Config:
    """unet/config.json."""
    return {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "attention_head_dim": 8,
        "block_out_channels": list(architecture.unet_widths),
        "center_input_sample": False,
        "cross_attention_dim": architecture.text_width,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 4,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "out_channels": 4,
        "sample_size": 64,
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    }


def vae_config(architecture: Architecture) -> Config:
    """vae/config.json."""
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": list(architecture.vae_widths),
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 512,
        "scaling_factor": 0.18215,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }


def text_encoder_config(architecture: Architecture) -> Config:
    """text_encoder/config.json."""
    return {
        "architectures": ["CLIPTextModel"],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "dropout": 0.0,
        "eos_token_id": 2,
        "hidden_act": "quick_gelu",
        "hidden_size": architecture.text_width,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": architecture.text_inner_width,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
        "num_attention_heads": architecture.text_heads,
        "num_hidden_layers": 12,
        "pad_token_id": 1,
        "projection_dim": architecture.text_width,
        "torch_dtype": architecture.dtype,
        "vocab_size": 49408,
    }


SCHEDULER_CONFIG: Config = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}

MODEL_INDEX: Config = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def write_configs(folder: Path, architecture: Architecture) -> None:
    """Writes a diffusers folder's JSON files: all but the tokenizer and the weights."""
    write_json(folder / "model_index.json", MODEL_INDEX)
    write_json(folder / "unet" / "config.json", unet_config(architecture))
    write_json(folder / "vae" / "config.json", vae_config(architecture))
    write_json(folder / "text_encoder" / "config.json", text_encoder_config(architecture))
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER_CONFIG)
