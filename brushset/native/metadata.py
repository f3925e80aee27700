"""What a file says about how it was trained: the `ss_*` and `modelspec.*` fields that UIs and tools read.

Field names and forms are sd-scripts'. All values are strings. A field is written only where this engine knows it to be
true: there is no `ss_sd_scripts_commit_hash`, and no hash of a base that is a folder of several files.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brushset.lora.metadata import window_hash
from brushset.native.captions import tag_frequency
from brushset.native.dataset import Length, TrainingSet, derive_seed
from brushset.native.settings import NativeSettings
from brushset.records import BaseFile

_SAME_NAME = (
    "output_name", "learning_rate", "text_encoder_lr", "unet_lr", "gradient_checkpointing", "max_grad_norm",
    "gradient_accumulation_steps", "lr_warmup_steps", "lr_scheduler", "network_module", "network_dim", "network_alpha",
    "mixed_precision", "clip_skip", "max_token_length", "cache_latents", "seed", "noise_offset", "min_snr_gamma",
    "training_comment", "loss_type", "scale_weight_norms", "multires_noise_iterations", "multires_noise_discount",
    "ip_noise_gamma", "zero_terminal_snr", "noise_offset_random_strength", "ip_noise_gamma_random_strength",
    "huber_schedule", "huber_scale", "huber_c", "max_validation_steps", "validate_every_n_epochs", "validation_seed",
)  # fmt: skip
"""Keys of training.toml that the metadata holds as `ss_<key>`."""

_OFF: Mapping[str, object] = {
    "ss_v2": False, "ss_base_model_version": "sd_v1", "ss_full_fp16": False, "ss_fp8_base": False,
    "ss_fp8_base_unet": False, "ss_num_reg_images": 0, "ss_network_dropout": None, "ss_adaptive_noise_scale": None,
    "ss_face_crop_aug_range": None, "ss_lowram": False, "ss_prior_loss_weight": 1.0, "ss_resize_interpolation": None,
    "ss_validation_split": 0.0, "ss_validate_every_n_steps": None,
}  # fmt: skip
"""What this engine never does, as sd-scripts writes it where it was not asked for."""


@dataclass(frozen=True)
class Origin:
    """What the metadata tells beside the settings. Times are seconds since 1970."""

    base: BaseFile
    optimizer: str
    started_at: float
    version: str
    validation_images: int = 0


def training_metadata(settings: NativeSettings, images: TrainingSet, length: Length, origin: Origin) -> dict[str, str]:
    """The `ss_*` fields that hold for all files of a run."""
    training, keys = settings.training, settings.dataset
    fields: dict[str, object] = dict(_OFF)
    fields.update({f"ss_{name}": getattr(training, name) for name in _SAME_NAME})
    fields.update(
        ss_session_id=derive_seed(training.seed, f"session {origin.started_at}") % 2**32,
        ss_training_started_at=origin.started_at,
        ss_optimizer=origin.optimizer,
        ss_caption_dropout_rate=keys.caption_dropout_rate,
        ss_caption_dropout_every_n_epochs=keys.caption_dropout_every_n_epochs,
        ss_caption_tag_dropout_rate=keys.caption_tag_dropout_rate,
        ss_debiased_estimation=training.debiased_estimation_loss,
        ss_num_validation_images=origin.validation_images,
        ss_num_train_images=len(images.images) * keys.num_repeats,
        ss_num_batches_per_epoch=length.batches_per_epoch,
        ss_num_epochs=length.epochs,
        ss_max_train_steps=length.steps,
        ss_sd_model_name=Path(origin.base.name).name if Path(origin.base.name).exists() else origin.base.name,
    )
    if origin.base.kind == "single-file":
        fields["ss_new_sd_model_hash"] = origin.base.sha256
        fields["ss_sd_model_hash"] = window_hash(Path(origin.base.path))
    folder = settings.image_dir.name
    tags = {folder: tag_frequency([image.caption for image in images.images])}
    described = _describe_dataset(settings, images) | {"tag_frequency": tags}
    fields["ss_datasets"] = json.dumps([described])
    fields["ss_tag_frequency"] = json.dumps(tags)
    fields["ss_dataset_dirs"] = json.dumps({folder: {"n_repeats": keys.num_repeats, "img_count": len(images.images)}})
    return {key: str(value) for key, value in fields.items()}


def model_spec(settings: NativeSettings, origin: Origin, written_at: float) -> dict[str, str]:
    """The `modelspec.*` fields (Stability AI's ModelSpec 1.0.1)."""
    training, side = settings.training, settings.dataset.resolution
    fields = {
        "sai_model_spec": "1.0.1",
        "architecture": "stable-diffusion-v1/lora",
        "implementation": "diffusers",
        "implementation_version": f"brushset/{origin.version}",
        "title": training.metadata_title or training.output_name,
        "date": time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(written_at)),
        "resolution": f"{side}x{side}",
        "prediction_type": "epsilon",
        "encoder_layer": training.clip_skip,
        "author": training.metadata_author,
        "description": training.metadata_description,
        "license": training.metadata_license,
        "tags": training.metadata_tags,
        "usage_hint": training.metadata_usage_hint,
        "trigger_phrase": training.metadata_trigger_phrase,
    }
    return {f"modelspec.{key}": str(value) for key, value in fields.items() if value is not None}


def _describe_dataset(settings: NativeSettings, images: TrainingSet) -> dict[str, Any]:
    """The one entry of ss_datasets; counts include repeats, except a subset's img_count."""
    keys, plan = settings.dataset, images.plan
    buckets = {
        str(number): {"resolution": list(bucket), "count": count * keys.num_repeats}
        for number, (bucket, count) in enumerate(plan.counts.items())
    }
    return {
        "is_dreambooth": True,
        "batch_size_per_device": keys.batch_size,
        "num_train_images": len(images.images) * keys.num_repeats,
        "num_reg_images": 0,
        "resolution": [keys.resolution, keys.resolution],
        "enable_bucket": keys.enable_bucket,
        "min_bucket_reso": keys.min_bucket_reso if keys.enable_bucket else None,
        "max_bucket_reso": keys.max_bucket_reso if keys.enable_bucket else None,
        "bucket_info": {"buckets": buckets, "mean_img_ar_error": plan.mean_aspect_error}
        if keys.enable_bucket
        else None,
        "resize_interpolation": None,
        "subsets": [
            {
                "img_count": len(images.images),
                "num_repeats": keys.num_repeats,
                "color_aug": False,
                "flip_aug": keys.flip_aug,
                "random_crop": False,
                "shuffle_caption": keys.shuffle_caption,
                "keep_tokens": keys.keep_tokens,
                "keep_tokens_separator": keys.keep_tokens_separator,
                "secondary_separator": keys.secondary_separator,
                "enable_wildcard": keys.enable_wildcard,
                "caption_prefix": keys.caption_prefix,
                "caption_suffix": keys.caption_suffix,
                "resize_interpolation": None,
                "image_dir": settings.image_dir.name,
                "class_tokens": keys.class_tokens,
                "is_reg": False,
            }
        ],
    }
