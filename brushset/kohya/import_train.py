"""[train] of a style from a pair of Kohya TOMLs: which key is which field, and what sd-scripts uses where none is given."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from brushset.kohya.check.options import default_of

Tables = dict[str, Any]
# Keys that reach the images, from either file; a style has a field of the same name, but for num_repeats.
DATASET_FIELDS = (
    "batch_size", "num_repeats", "shuffle_caption", "keep_tokens", "caption_dropout_rate", "flip_aug", "enable_bucket",
    "min_bucket_reso", "max_bucket_reso", "bucket_reso_steps", "bucket_no_upscale",
)  # fmt: skip
# Keys of the training TOML that a style has a field of the same name for, but for the loader's workers.
TRAIN_FIELDS = (
    "network_dim", "network_alpha", "gradient_accumulation_steps", "max_grad_norm", "save_precision",
    "gradient_checkpointing", "min_snr_gamma", "noise_offset", "max_token_length", "clip_skip", "cache_latents",
    "vae_batch_size", "seed", "save_every_n_epochs", "max_data_loader_n_workers", "mixed_precision",
)  # fmt: skip
# What changes no result, or cannot be said in a style as sd-scripts' default has it: carried over where it is given.
GIVEN_ONLY = frozenset(("vae_batch_size", "seed", "save_every_n_epochs", "max_data_loader_n_workers"))
# What brushset writes by itself, or what lies with the machine.
OURS_TO_SET = frozenset(
    ("output_dir", "logging_dir", "log_with", "log_prefix", "log_tracker_name", "save_model_as", "network_module",
     "console_log_simple", "console_log_file", "console_log_level", "persistent_data_loader_workers", "dataset_config",
     "train_data_dir", "tokenizer_cache_dir", "learning_rate", "no_half_vae", "prior_loss_weight", "sample_prompts",
     "sample_sampler", "sample_every_n_steps", "sample_at_first", "dynamo_backend", "wandb_run_name", "config_file",
     "output_config")
)  # fmt: skip
_UNLIKE_OURS: dict[str, Any] = {
    "batch_size": 1, "num_repeats": 1, "network_dim": 4, "save_precision": "float", "min_snr_gamma": 0.0,
    "noise_offset": 0.0, "clip_skip": 1, "max_token_length": 75, "keep_tokens": 0, "caption_dropout_rate": 0.0,
}  # fmt: skip
_OPTIMIZERS = {"": "AdamW", "adamw": "AdamW", "adamw8bit": "AdamW8bit", "prodigy": "Prodigy", "lion": "Lion"}


@dataclass
class Pair:
    """The pair as sd-scripts sees it, what is left of it to carry over, and what is said on the way."""

    training: Tables
    dataset: Tables
    ours: bool
    notes: list[str] = field(default_factory=list)

    def take(self, key: str) -> Any:
        """The value that a subset gets: the dataset TOML's, else the training TOML's, else None; it is then done with."""
        named = {"batch_size": "train_batch_size", "num_repeats": "dataset_repeats"}.get(key, key)
        below = self.training.pop(named, None)
        value = self.dataset.pop(key, None)
        return below if value is None else value


def read_train(pair: Pair) -> Tables:
    """[train] of the style, but for `extra`; every key that it reads is taken from the pair."""
    table = _rates(pair) | _length(pair) | _optimizer(pair)
    for key in DATASET_FIELDS:
        value = pair.take(key)
        if value is not None or key not in GIVEN_ONLY:
            table["repeats" if key == "num_repeats" else key] = _used(key, value)
    for key in TRAIN_FIELDS:
        value = pair.training.pop(key, None)
        if value is not None or key not in GIVEN_ONLY:
            table["data_loader_workers" if key == "max_data_loader_n_workers" else key] = _used(key, value)
    if table["max_token_length"] is None:
        table["max_token_length"] = 75
    _attention(pair, table)
    _buckets(pair, table)
    if every := pair.training.pop("sample_every_n_epochs", None):
        table["sample_every_n_epochs"] = every
        if not pair.ours:
            pair.notes.append("sample_prompts: brushset samples [evaluate] prompts; put yours there")
    if table["shuffle_caption"] and not table["keep_tokens"]:
        table["keep_tokens"] = 1
        pair.notes.append("keep_tokens = 0 with shuffle_caption became 1: the trigger stays in front")
    return table


def _rates(pair: Pair) -> Tables:
    training = pair.training
    default = training.pop("learning_rate", None)
    default = default_of("learning_rate") if default is None else default
    unet, text = training.pop("unet_lr", None), training.pop("text_encoder_lr", None)
    text = text[0] if isinstance(text, list) and text else None if isinstance(text, list) else text
    table: Tables = {"unet_lr": default if unet is None else unet}
    if training.pop("network_train_unet_only", False) or text == 0:
        table["train_text_encoder"] = False
        if text == 0:
            pair.notes.append(
                "text_encoder_lr = 0 became train_text_encoder = false: its modules would be saved untrained"
            )
    else:
        table["text_encoder_lr"] = default if text is None else text
    return table


def _length(pair: Pair) -> Tables:
    training = pair.training
    epochs, steps = training.pop("max_train_epochs", None), training.pop("max_train_steps", None)
    table: Tables = {"epochs": epochs} if epochs else {"max_steps": steps or default_of("max_train_steps")}
    schedule = training.pop("lr_scheduler", None) or "constant"
    table["lr_scheduler"] = schedule
    warmup = training.pop("lr_warmup_steps", None) or 0
    if isinstance(warmup, int) and warmup > 0:
        share = warmup / table["max_steps"] if "max_steps" in table else None
        told = f"lr_warmup_steps = {warmup} became lr_warmup_ratio = {share:.4f}" if share else (
            f"not carried over: lr_warmup_steps = {warmup}: a style states a share; lr_warmup_ratio is 0.05 until you change it"
        )  # fmt: skip
        pair.notes.append(told)
        warmup = 0.05 if share is None else share
    if schedule != "constant":
        table["lr_warmup_ratio"] = float(warmup)
    return table


def _optimizer(pair: Pair) -> Tables:
    training = pair.training
    name = str(training.pop("optimizer_type", None) or "")
    if training.pop("use_8bit_adam", False):
        name = "AdamW8bit"
    if training.pop("use_lion_optimizer", False):
        name = "Lion"
    entries = list(training.pop("optimizer_args", None) or ())
    known = _OPTIMIZERS.get(name.lower())
    if known is None:
        pair.notes.append(
            f'not carried over: optimizer_type = "{name}": brushset has AdamW, AdamW8bit, Prodigy and Lion; look at the rates'
        )
        return {"optimizer": "AdamW"}
    if known == "AdamW" and training.get("mixed_precision") != "fp16":
        entries = [entry for entry in entries if entry.replace(" ", "") != "fused=True"]  # the renderer adds it
    return {"optimizer": known, "optimizer_args": tuple(entries)}


def _attention(pair: Pair, table: Tables) -> None:
    sdpa, xformers, naive = (pair.training.pop(key, False) for key in ("sdpa", "xformers", "mem_eff_attn"))
    if xformers and not naive:
        table["attention"] = "xformers"
    elif not sdpa:
        pair.notes.append(
            "attention: sdpa in place of the slow one that neither sdpa nor xformers leads to; the numbers agree"
        )


def _buckets(pair: Pair, table: Tables) -> None:
    """Bounds that have no effect are left out, and those that sd-scripts would round are rounded."""
    if not table["enable_bucket"]:
        for key in ("min_bucket_reso", "max_bucket_reso", "bucket_reso_steps", "bucket_no_upscale"):
            table.pop(key)
        return
    step = table["bucket_reso_steps"]
    for key, rounded in (("min_bucket_reso", math.floor), ("max_bucket_reso", math.ceil)):
        exact = rounded(table[key] / step) * step
        if exact != table[key]:
            pair.notes.append(f"{key} = {table[key]} became {exact}, as sd-scripts rounds it")
            table[key] = exact


def _used(key: str, value: object) -> Any:
    """What sd-scripts uses for a key: what is given, else its default, in a style's terms."""
    if value is not None:
        return value
    return _UNLIKE_OURS.get(key, default_of(key))
