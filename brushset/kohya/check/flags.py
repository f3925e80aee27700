"""Is the pair of TOMLs that we render one that sd-scripts takes, and takes as meant? Asked before anything starts.

sd-scripts does not ask itself (see brushset.kohya.check.options), so every rendered key is checked by name, type, choice,
range and effect, and all of them against one another; `[train.extra]` may say what no field of a style says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from brushset.errors import UsageError
from brushset.kohya.check.dataset import check_dataset
from brushset.kohya.check.findings import Finding, flat_tables
from brushset.kohya.check.options import FLAGS_FILE, known_flags, type_complaint
from brushset.kohya.check.training import check_training
from brushset.kohya.check.validate import given_to_datasets, together
from brushset.spec import TrainSection

__all__ = ["FLAGS_FILE", "check_pair", "dataset_findings", "known_flags", "refusal", "training_findings"]
_TRAINING, _DATASET = "training.toml", "dataset.toml"

# What `[train.extra]` may not say: a field of the style says it, by the same name (every field of [train]) or another …
_RULED_BY = {
    "train_batch_size": "[train] batch_size",
    "learning_rate": "[train] unet_lr",
    "max_train_steps": "[train] max_steps",
    "max_train_epochs": "[train] epochs",
    "optimizer_type": "[train] optimizer",
    "use_8bit_adam": '[train] optimizer = "AdamW8bit"',
    "use_lion_optimizer": '[train] optimizer = "Lion"',
    "lr_warmup_steps": "[train] lr_warmup_ratio",
    "sdpa": '[train] attention = "sdpa"',
    "xformers": '[train] attention = "xformers"',
    "mem_eff_attn": "[train] attention",
    "max_data_loader_n_workers": "[train] data_loader_workers",
    "persistent_data_loader_workers": "[train] data_loader_workers",
    "network_train_unet_only": "[train] train_text_encoder",
    "pretrained_model_name_or_path": "[base] model",
    "dataset_repeats": "[train] repeats",
    "resolution": "[dataset] resolution",
    "train_data_dir": "[dataset] images",
    "metadata_trigger_phrase": "trigger",
    "metadata_title": "name",
    "metadata_description": "description",
    "output_name": "name",
}
# … or brushset depends on it.
_REFUSED = {
    **dict.fromkeys(
        ("output_dir", "logging_dir", "log_with", "log_prefix", "log_tracker_name", "save_model_as", "config_file",
         "output_config", "dataset_config", "dataset_class", "tokenizer_cache_dir", "console_log_simple",
         "console_log_file", "console_log_level", "no_metadata", "debug_dataset", "caption_extension",
         "caption_extention", "no_half_vae"),
        "brushset sets it, and reads what it leads to",
    ),
    **dict.fromkeys(
        ("v2", "v_parameterization", "network_module", "base_weights", "base_weights_multiplier", "network_weights",
         "dim_from_weights", "network_train_text_encoder_only", "vae"),
        "the result would not be the plain SD 1.5 adapter that brushset verifies",
    ),
    **dict.fromkeys(
        ("resume", "initial_step", "initial_epoch", "skip_until_initial_step", "save_state", "save_state_on_train_end",
         "save_every_n_steps", "save_n_epoch_ratio", "save_last_n_epochs", "save_last_n_steps",
         "save_last_n_epochs_state", "save_last_n_steps_state"),
        "brushset says when a state is saved and goes on from it itself; see [train] save_state_minutes",
    ),
    **dict.fromkeys(
        ("sample_prompts", "sample_every_n_steps", "sample_at_first"),
        "samples are made of the prompts of [evaluate]; see [train] sample_every_n_epochs",
    ),
    **dict.fromkeys(
        ("validation_split", "validate_every_n_steps"),
        "the held-out images are validated on; see [train] validate_every_n_epochs and [dataset] holdout",
    ),
    **dict.fromkeys(
        ("huggingface_repo_id", "huggingface_token", "wandb_api_key", "resume_from_huggingface",
         "save_state_to_huggingface", "async_upload"),
        "the trainer is offline and gets no tokens",
    ),
    **dict.fromkeys(("reg_data_dir", "in_json", "conditioning_data_dir"), "the dataset TOML says which images there are"),
    "cache_latents_to_disk": "it reuses latents of changed images and sizes; set [train] cache_latents",
    "deepspeed": "one run uses one device",
}  # fmt: skip
_NETWORK_ARGS = frozenset(
    ("rank_dropout", "module_dropout", "loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio")
)


def check_pair(dataset: Mapping[str, Any], training: Mapping[str, Any]) -> None:
    """Raises UsageError with everything in the two TOMLs that sd-scripts would not take, or not as meant, a line each."""
    found = [*training_findings(training), *dataset_findings(dataset, training)]
    if not found:  # a key that is wrong by itself would be told of again, in other words
        found = [_told(finding) for finding in together(training, _TRAINING, dataset, _DATASET)]
    if found:
        raise UsageError.of_many(found)


def training_findings(tables: Mapping[str, Any]) -> list[str]:
    """What is wrong with a training TOML. Keys of `[extra]` are shown where the user wrote them, in [train.extra]."""
    loose = [
        f"{_TRAINING}: {name} stands outside of a section"
        for name, table in tables.items()
        if not isinstance(table, Mapping)
    ]
    refused = {key: reason for key, value in tables.get("extra", {}).items() if (reason := refusal(key, value))}
    found = [Finding(_TRAINING, ("extra", key), "wrong", reason) for key, reason in refused.items()]
    known = known_flags()["options"]
    for path, value in flat_tables(tables):
        if path[-1] in known and path[-1] not in refused and (complaint := type_complaint(str(path[-1]), value)):
            found.append(Finding(_TRAINING, path, "wrong", complaint))
    told = {finding.path[-1] for finding in found}
    found += [
        finding
        for finding in check_training(tables, _TRAINING)
        if finding.severity != "harmless" and finding.path and finding.path[-1] not in told
    ]
    return loose + [_told(finding) for finding in found]


def dataset_findings(tables: Mapping[str, Any], training: Mapping[str, Any] | None = None) -> list[str]:
    """What is wrong with a dataset TOML: unknown keys, types and ranges at all levels, and what they add up to."""
    outside = given_to_datasets(training or {}, _TRAINING)
    found = check_dataset(tables, _DATASET, outside=outside)
    return [_told(finding) for finding in found if finding.severity != "harmless"]


def _told(finding: Finding) -> str:
    if finding.file == _TRAINING and finding.path[:1] == ("extra",):
        return f"[train.extra]: {finding.message}"
    return f"{finding.file} {finding.table}".rstrip() + f": {finding.message}"


def refusal(key: str, value: object) -> str:
    """Why a key may not stand in [train.extra], or an empty string."""
    ruled_by = f"[train] {key}" if key in TrainSection.model_fields else _RULED_BY.get(key)
    if ruled_by:
        return f"{key} is ruled by {ruled_by}"
    if key in _REFUSED:
        return f"{key} is refused: {_REFUSED[key]}"
    if key == "network_args" and isinstance(value, list):
        names = [str(item).partition("=")[0] for item in value]
        wrong = [name for name in names if name not in _NETWORK_ARGS]
        if wrong:
            return f'network_args "{wrong[0]}" is not one of {", ".join(sorted(_NETWORK_ARGS))}'
    return ""
