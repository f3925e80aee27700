"""Does sd-scripts know every key that we write, with this type and this value?

It does not ask itself: the training TOML becomes an argparse namespace with no check of names, types or choices
(measured at v0.10.1: `learnig_rate`, `mixed_precision = "bf61"` and `learning_rate = "1e-4"` all pass). So every
rendered key is held against flags.json, which scripts/make_flags.py asks from sd-scripts' own parser and schema.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from brushset.errors import UsageError
from brushset.files import read_json
from brushset.spec import TrainSection

FLAGS_FILE = Path(__file__).with_name("flags.json")

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
        ("resume", "initial_step", "initial_epoch", "skip_until_initial_step", "save_state", "save_state_on_train_end"),
        "resuming sd-scripts loses count of its steps; an interrupted training starts anew",
    ),
    **dict.fromkeys(
        ("huggingface_repo_id", "huggingface_token", "wandb_api_key", "resume_from_huggingface", "async_upload"),
        "the trainer is offline and gets no tokens",
    ),
    **dict.fromkeys(("reg_data_dir", "in_json", "conditioning_data_dir"), "the dataset TOML says which images there are"),
    "cache_latents_to_disk": "it reuses latents of changed images and sizes; set [train] cache_latents",
    "deepspeed": "one run uses one device",
}  # fmt: skip
_SCALAR_TOO = frozenset(("text_encoder_lr",))  # a list on the command line; train_network.py takes one number from TOML
_NETWORK_ARGS = frozenset(
    ("rank_dropout", "module_dropout", "loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio")
)


@functools.cache
def known_flags() -> dict[str, Any]:
    """flags.json: `sd_scripts_commit`, `options` by name, `dataset` keys by level."""
    return dict(read_json(FLAGS_FILE))


def check_pair(dataset: Mapping[str, Any], training: Mapping[str, Any]) -> None:
    """Raises UsageError with every key of the two TOMLs that sd-scripts would not take, a line each."""
    findings = [*training_findings(training), *dataset_findings(dataset)]
    if findings:
        raise UsageError.of_many(findings)


def training_findings(tables: Mapping[str, Any]) -> list[str]:
    """What is wrong with a training TOML. Keys of `[extra]` are shown where the user wrote them, in [train.extra]."""
    findings: list[str] = []
    seen: dict[str, str] = {}
    for section, table in tables.items():
        where = "[train.extra]" if section == "extra" else f"training.toml [{section}]"
        if not isinstance(table, Mapping):
            findings.append(f"training.toml: {section} stands outside of a section")
            continue
        for key, value in table.items():
            if section == "extra" and (refusal := _refusal(key, value)):
                findings.append(f"{where}: {refusal}")
            elif key in seen:
                findings.append(f"{where}: {key} is also in [{seen[key]}]")
            elif complaint := _option_complaint(key, value):
                findings.append(f"{where}: {complaint}")
            seen.setdefault(key, section)
    return findings


def dataset_findings(tables: Mapping[str, Any]) -> list[str]:
    """What is wrong with a dataset TOML: unknown keys and types at all three levels."""
    levels = known_flags()["dataset"]
    findings = [
        f'dataset.toml: unknown table "{name}"{_nearest(name, ("general", "datasets"))}'
        for name in tables
        if name not in ("general", "datasets")
    ]
    findings += _level_findings(tables.get("general", {}), levels["general"], "[general]")
    datasets = tables.get("datasets", [])
    if not datasets:
        findings.append("dataset.toml: no [[datasets]], so there is nothing to train on")
    for dataset in datasets:
        own = {key: value for key, value in dataset.items() if key != "subsets"}
        findings += _level_findings(own, levels["datasets"], "[[datasets]]")
        if not dataset.get("subsets"):
            findings.append("dataset.toml [[datasets]]: no subsets, which sd-scripts takes for a ControlNet dataset")
        for subset in dataset.get("subsets", []):
            findings += _level_findings(subset, levels["subsets"], "[[datasets.subsets]]")
            if not subset.get("image_dir"):
                findings.append('dataset.toml [[datasets.subsets]]: "image_dir" is missing')
    return findings


def _refusal(key: str, value: object) -> str:
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


def _option_complaint(key: str, value: object) -> str:
    options = known_flags()["options"]
    if key not in options:
        return f'unknown key "{key}"{_nearest(key, options)}'
    option = options[key]
    values: Sequence[object] = [value]
    if option["kind"] == "list" and not (key in _SCALAR_TOO and not isinstance(value, list)):
        if not isinstance(value, list):
            return f"{key} = {value!r}: expected a list"
        values = value
    for item in values:
        if not _is_a(item, option["type"]):
            return f"{key} = {value!r}: expected {option['type']}"
        if item not in option.get("choices", [item]):
            return f"{key} = {value!r}: expected one of {', '.join(map(str, option['choices']))}"
    return ""


def _level_findings(table: Mapping[str, Any], known: Mapping[str, str], level: str) -> list[str]:
    findings = []
    for key, value in table.items():
        if key not in known:
            findings.append(f'dataset.toml {level}: unknown key "{key}"{_nearest(key, known)}')
        elif not any(_is_a(value, name, strict=True) for name in known[key].split(" or ")):
            findings.append(f"dataset.toml {level}: {key} = {value!r}: expected {known[key]}")
    return findings


def _is_a(value: object, name: str, *, strict: bool = False) -> bool:
    """Whether a TOML value has a type of flags.json. Strict is the dataset schema, to which 0 is no float."""
    if name.startswith("pair"):
        return isinstance(value, list) and len(value) == 2 and all(isinstance(item, (int, float)) for item in value)
    if name == "bool" or isinstance(value, bool):
        return name == "bool" and isinstance(value, bool)
    if name == "float":
        return isinstance(value, float if strict else (int, float))
    kinds: dict[str, type | tuple[type, ...]] = {"int": int, "str": str, "number": (int, float), "dict": dict}
    return isinstance(value, kinds[name])


def _nearest(key: str, known: Mapping[str, object] | Sequence[str]) -> str:
    names = difflib.get_close_matches(key, list(known), n=1, cutoff=0.6)
    return f'; did you mean "{names[0]}"?' if names else ""
