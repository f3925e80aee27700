"""Does train_network.py know this option, with this type, choice and range, and does it do anything for an SD 1.5 LoRA?

sd-scripts asks none of it: a training TOML becomes an argparse namespace as it stands (measured at v0.10.1:
`learnig_rate`, `mixed_precision = "bf61"` and `learning_rate = "1e-4"` all pass). What it knows stands in flags.json,
asked from its own parser; the ranges and the effects below were read in its code, and tests hold them against it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from brushset.files import read_json
from brushset.kohya.check.findings import is_a, nearest, said

FLAGS_FILE = Path(__file__).with_name("flags.json")

# Options of the parser that change nothing in a training of an SD 1.5 LoRA, and why.
NO_EFFECT: Mapping[str, str] = {
    "fused_backward_pass": "it acts in the SDXL, SD3 and FLUX scripts only; here it is an assertion on the optimizer, then unused",
    "cpu_offload_checkpointing": "SD 1.5's UNet cannot do it: a TypeError with gradient_checkpointing, nothing without",
    "dataset_repeats": "num_repeats in the dataset TOML, or the number before a folder's name, says how often images are seen",
    "caption_extention": "the old misspelling of caption_extension, which it overrides",
}
# Keys that people write from habit, of other trainers or of sd-scripts' own arguments of arguments → what they meant.
MEANT: Mapping[str, str] = {
    "lr": "learning_rate", "rank": "network_dim", "dim": "network_dim", "lora_rank": "network_dim", "alpha": "network_alpha",
    "lora_alpha": "network_alpha", "epochs": "max_train_epochs", "max_epochs": "max_train_epochs",
    "num_epochs": "max_train_epochs", "steps": "max_train_steps", "max_steps": "max_train_steps",
    "warmup_steps": "lr_warmup_steps", "lr_warmup": "lr_warmup_steps", "optimizer": "optimizer_type",
    "max_resolution": "resolution", "scheduler": "lr_scheduler", "unet_learning_rate": "unet_lr", "te_lr": "text_encoder_lr",
    "base_model": "pretrained_model_name_or_path", "precision": "mixed_precision",
}  # fmt: skip
IN_OPTIMIZER_ARGS = ("weight_decay", "betas", "eps", "momentum", "d_coef", "d0", "relative_step", "decouple")
IN_NETWORK_ARGS = (
    "conv_dim", "conv_alpha", "rank_dropout", "module_dropout", "block_dims", "block_alphas", "conv_block_dims",
    "conv_block_alphas", "down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_lr_zero_threshold",
    "loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio",
)  # fmt: skip
# Least and largest value that does what is meant; None is open. Values at which sd-scripts switches a thing off are in.
RANGES: Mapping[str, tuple[float | None, float | None]] = {
    **dict.fromkeys(
        ("gradient_accumulation_steps", "train_batch_size", "network_dim", "max_train_steps", "max_train_epochs",
         "save_every_n_epochs", "save_every_n_steps", "vae_batch_size", "lr_scheduler_num_cycles",
         "validate_every_n_steps", "validate_every_n_epochs", "max_validation_steps", "initial_epoch", "dataset_repeats"),
        (1, None),
    ),
    **dict.fromkeys(
        ("learning_rate", "unet_lr", "text_encoder_lr", "max_grad_norm", "max_data_loader_n_workers", "noise_offset",
         "ip_noise_gamma", "min_snr_gamma", "multires_noise_iterations", "lr_warmup_steps", "lr_decay_steps", "keep_tokens",
         "scale_weight_norms", "prior_loss_weight", "initial_step", "caption_dropout_every_n_epochs", "token_warmup_step",
         "network_alpha", "huber_c", "huber_scale", "lr_scheduler_power", "v_pred_like_loss"),
        (0, None),
    ),
    **dict.fromkeys(
        ("caption_dropout_rate", "caption_tag_dropout_rate", "multires_noise_discount", "lr_scheduler_min_lr_ratio"), (0, 1)
    ),
    "network_dropout": (0, 0.999),
    "validation_split": (0, 1),  # 1: a dataset of its own, which is validated on alone
    "clip_skip": (1, 12),
    "min_timestep": (0, 999),
    "max_timestep": (1, 1000),
    "seed": (0, 2**32 - 1),
    "validation_seed": (0, 2**32 - 1),
    "min_bucket_reso": (64, None),
    "max_bucket_reso": (64, None),
    "bucket_reso_steps": (1, None),
}  # fmt: skip
# What happens outside of a range, where it is not simply an error.
_OUT_OF_RANGE: Mapping[str, str] = {
    "clip_skip": "0 takes the token embeddings in place of the text encoder's output, without a word",
    "save_every_n_epochs": "0 divides by zero at the end of the first epoch",
    "save_every_n_steps": "0 divides by zero after the first step",
    "validation_split": "outside of 0 to 1 there is no validation",
    "seed": "numpy refuses it",
    "network_dim": "0 makes no modules, and the optimizer then has nothing to train",
    "vae_batch_size": "caching of latents fails",
    "gradient_accumulation_steps": "the number of steps is divided by it",
}
_SCALAR_TOO = frozenset(("text_encoder_lr",))  # a list on the command line; train_network.py takes one number from TOML


@functools.cache
def known_flags() -> dict[str, Any]:
    """flags.json: `sd_scripts_commit`, `options` by name, `elsewhere` by name, `dataset` keys by level, and more."""
    return dict(read_json(FLAGS_FILE))


def type_complaint(key: str, value: object) -> str:
    """What is wrong with the type or choice of a known option's value, or an empty string."""
    option = known_flags()["options"][key]
    values: Sequence[object] = [value]
    if option["kind"] == "list" and not (key in _SCALAR_TOO and not isinstance(value, list)):
        if not isinstance(value, list):
            return f"{key} = {value!r}: expected a list"
        values = value
    strict = known_flags()["strict"].get(key, "")
    for item in values:
        if not is_a(item, option["type"]) or (strict and not _is_any(item, strict)):
            return f"{key} = {value!r}: expected {strict or option['type']}"
        if item not in option.get("choices", [item]):
            return f"{key} = {value!r}: expected one of {', '.join(map(str, option['choices']))}"
    return ""


def type_effect(key: str, value: object) -> tuple[str, bool]:
    """What sd-scripts does with a value of the wrong type or choice; whether it is as if nothing had been said."""
    option, strict = known_flags()["options"][key], known_flags()["strict"]
    if key == "max_token_length" and value == 75:
        return "75 tokens are what leaving it out gives", True
    if key == "dynamo_backend" and str(value).lower() in ("no", "false", ""):
        return "torch_compile decides whether anything is compiled", True
    if key in strict and not _is_any(value, strict[key]):
        return "the dataset loader stops with MultipleInvalid", False
    if key == "max_token_length":
        return "captions are cut into pieces of 75 tokens, and what is over is dropped", False
    if option["kind"] == "switch" and isinstance(value, int):
        return f"taken as {str(bool(value)).lower()}", True
    if option["kind"] == "switch":
        return f"taken as {str(bool(value)).lower()}, as any text is but the empty one", False
    if value in (False, "") and option["type"] == "str" and "choices" not in option and "default" not in option:
        return "taken as not given, where sd-scripts asks for truth", key in (
            "resume",
            "lr_scheduler_type",
            "sample_prompts",
        )
    return "sd-scripts does not check it, and fails or misreads it when it gets there", False


def range_complaint(key: str, value: object) -> tuple[str, str]:
    """What is wrong with a number's size, and its effect; empty strings where nothing is."""
    if key not in RANGES:
        return "", ""
    least, most = RANGES[key]
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, bool) or not isinstance(item, int | float):
            continue
        if (least is not None and not item >= least) or (most is not None and item > most):
            return f"{said(key, value)}: expected {_span(least, most)}", _OUT_OF_RANGE.get(key, "")
    return "", ""


def default_of(key: str) -> Any:
    """sd-scripts' default of an option; switches are off, and most others None."""
    option = known_flags()["options"].get(key, {})
    return option.get("default", False if option.get("kind") == "switch" else None)


def nearest_option(key: str) -> str:
    """The option that an unknown key was likely meant to be, or an empty string."""
    options = known_flags()["options"]
    if key.lower() in MEANT:
        return MEANT[key.lower()]
    if key.replace("-", "_").lower().lstrip("_") in options:
        return key.replace("-", "_").lower().lstrip("_")
    return nearest(key, options)


def _is_any(value: object, kinds: str) -> bool:
    return any(is_a(value, kind, strict=True) for kind in kinds.split(" or "))


def _span(least: float | None, most: float | None) -> str:
    if most is None:
        return f"{least:g} or more"
    return f"{least:g} to {most:g}" if least is not None else f"at most {most:g}"
