"""Which two TOML files tell sd-scripts, and our own engine, what to train?

Pure: StyleSpec in, nested tables out; `brushset.files.toml_text` makes them text. sd-scripts flattens one level of the
training TOML, so its sections are for readers only. Paths are relative to the run folder, the trainer's working
directory, and nothing of a machine or an attempt is in them: that goes to the command line, which overrules the file
(`brushset.engines.kohya`). Options that sd-scripts has off by default are written only where they are on.

What sd-scripts does with some keys, measured at v0.10.1, and why they stand here:
- its defaults bite: caption_extension ".caption", network_alpha 1, no buckets, a random seed, LoRA saved in float32;
- `max_train_epochs` silently overrules `max_train_steps`: only one of them is written;
- a fraction in `lr_warmup_steps` is a share of all steps; the schedule "constant" raises where there is any;
- launcher settings do not reach training: `mixed_precision` must stand here;
- without `learning_rate` its default 2e-6 is what the metadata says;
- persistent loader workers with 0 workers are an error;
- a VAE in fp16 may cache NaN latents without a word, so it stays in float32 then.
"""

from __future__ import annotations

from typing import Any

from brushset.spec import StyleSpec, TrainSection

Tables = dict[str, Any]

IMAGES_DIR = "images"
HELDOUT_DIR = "images/heldout"
WEIGHTS_DIR = "weights"
LOGGING_DIR = "logs/tensorboard"


def render_dataset(spec: StyleSpec, repeats: int) -> Tables:
    """The dataset TOML: which images, how often, in which buckets and batches, with what done to captions."""
    train = spec.train
    general: Tables = {
        "caption_extension": ".txt",
        "keep_tokens": train.keep_tokens,
        "shuffle_caption": train.shuffle_caption,
        "caption_dropout_rate": train.caption_dropout_rate,
        "flip_aug": train.flip_aug,
        "enable_bucket": train.enable_bucket,
    }
    if train.enable_bucket:
        general |= {
            "min_bucket_reso": train.min_bucket_reso,
            "max_bucket_reso": train.max_bucket_reso,
            "bucket_reso_steps": train.bucket_reso_steps,
            "bucket_no_upscale": train.bucket_no_upscale,
        }
    subset = {"image_dir": IMAGES_DIR, "num_repeats": repeats}
    dataset = {"resolution": spec.dataset.resolution, "batch_size": train.batch_size, "subsets": [subset]}
    validation = [_validation_dataset(spec)] if train.validate_every_n_epochs else []
    return {"general": general, "datasets": [dataset, *validation]}


def render_training(spec: StyleSpec) -> Tables:
    """The training TOML: model, network, optimizer, length, precision, what is saved and logged."""
    tables = {
        "model": _model(spec),
        "network": _network(spec),
        "optimizer": _optimizer(spec),
        "training": _training(spec),
        "saving": _saving(spec),
        "metadata": _metadata(spec),
        "logging": {"logging_dir": LOGGING_DIR, "log_with": "tensorboard", "console_log_simple": True},
    }
    if spec.train.extra:
        tables["extra"] = dict(spec.train.extra)
    return tables


def _validation_dataset(spec: StyleSpec) -> Tables:
    """The held-out images, which are validated on alone: a dataset that is split off whole trains nothing. sd-scripts
    knows the split at this level only, whatever its documents say. The captions are taken as they are, and one at a time,
    so that every image counts as much and the loss is the same however the training's batches are divided.
    """
    return {
        "resolution": spec.dataset.resolution,
        "batch_size": 1,
        "validation_split": 1.0,
        "validation_seed": spec.train.seed,
        "caption_dropout_rate": 0.0,
        "shuffle_caption": False,
        "flip_aug": False,
        "subsets": [{"image_dir": HELDOUT_DIR, "num_repeats": 1}],
    }


def render_prompts(spec: StyleSpec) -> list[dict[str, Any]]:
    """The prompts that sample images are made of while training: the first of [evaluate], with the trigger in front. As JSON,
    since a line of text would take " --" in a prompt for an option.
    """
    ask = spec.evaluate
    return [
        {
            "prompt": f"{spec.trigger}, {prompt}",
            "negative_prompt": ask.negative_prompt,
            "width": ask.width,
            "height": ask.height,
            "seed": ask.seeds[0],
            "sample_steps": ask.steps,
            "scale": ask.guidance,
        }
        for prompt in ask.shown
    ]


def flatten(training: Tables) -> Tables:
    """The training TOML as sd-scripts sees it: one level of sections taken away."""
    flat: Tables = {}
    for key, value in training.items():
        flat |= value if isinstance(value, dict) else {key: value}
    return flat


def _model(spec: StyleSpec) -> Tables:
    table: Tables = {"pretrained_model_name_or_path": spec.base.model}
    if spec.train.clip_skip > 1:
        table["clip_skip"] = spec.train.clip_skip
    if spec.train.max_token_length != 75:
        table["max_token_length"] = spec.train.max_token_length
    return table


def _network(spec: StyleSpec) -> Tables:
    train = spec.train
    table: Tables = {
        "network_module": "networks.lora",
        "network_dim": train.network_dim,
        "network_alpha": train.network_alpha,
    }
    if not train.train_text_encoder:
        table["network_train_unet_only"] = True
    return table


def _optimizer(spec: StyleSpec) -> Tables:
    train = spec.train
    table: Tables = {"optimizer_type": train.optimizer}
    if options := _optimizer_args(train):
        table["optimizer_args"] = options
    table |= {"learning_rate": train.unet_lr, "unet_lr": train.unet_lr}
    if train.train_text_encoder:
        table["text_encoder_lr"] = train.text_encoder_lr
    table["lr_scheduler"] = train.lr_scheduler
    if train.lr_warmup_ratio and train.lr_scheduler != "constant":
        table["lr_warmup_steps"] = train.lr_warmup_ratio
    table["max_grad_norm"] = train.max_grad_norm
    return table


def _optimizer_args(train: TrainSection) -> list[str]:
    """What the style says, and fused=True for AdamW: the same numbers from one kernel instead of one or more a tensor.
    On a CPU, where torch loops over the 528 tensors of rank 32 otherwise, a step took 17 ms instead of 66. Not with fp16:
    a fused step hides from accelerate that the loss scaler skipped it.
    """
    given = list(train.optimizer_args)
    ruled_out = {"fused", "foreach", "differentiable"} & {entry.partition("=")[0].strip() for entry in given}
    if train.optimizer == "AdamW" and train.mixed_precision != "fp16" and not ruled_out:
        given.append("fused=True")
    return given


def _training(spec: StyleSpec) -> Tables:
    train = spec.train
    table: Tables = (
        {"max_train_epochs": train.epochs} if train.max_steps is None else {"max_train_steps": train.max_steps}
    )
    table |= {
        "gradient_accumulation_steps": train.gradient_accumulation_steps,
        "mixed_precision": train.mixed_precision,
        train.attention: True,
        "seed": train.seed,
        "max_data_loader_n_workers": train.data_loader_workers,
        "vae_batch_size": train.vae_batch_size,
    }
    if train.data_loader_workers:
        table["persistent_data_loader_workers"] = True
    for key in ("cache_latents", "gradient_checkpointing"):
        if getattr(train, key):
            table[key] = True
    for key in ("min_snr_gamma", "noise_offset"):
        if value := getattr(train, key):
            table[key] = value
    if train.validate_every_n_epochs:
        table["validate_every_n_epochs"] = train.validate_every_n_epochs
    if train.mixed_precision == "fp16":
        table["no_half_vae"] = True
    return table


def _saving(spec: StyleSpec) -> Tables:
    return {
        "output_dir": WEIGHTS_DIR,
        "output_name": spec.name,
        "save_model_as": "safetensors",
        "save_precision": spec.train.save_precision,
        "save_every_n_epochs": spec.train.save_every_n_epochs,
    }


def _metadata(spec: StyleSpec) -> Tables:
    """What sd-scripts writes into the file. Resolution and caption dropout are ruled by the dataset TOML; they are
    repeated here because the metadata would else say 512x512 and 0.0.
    """
    table: Tables = {
        "metadata_title": spec.name,
        "metadata_trigger_phrase": spec.trigger,
        "resolution": f"{spec.dataset.resolution},{spec.dataset.resolution}",
        "caption_dropout_rate": spec.train.caption_dropout_rate,
    }
    if spec.description:
        table["metadata_description"] = spec.description
    return table
