"""All that is held against a training TOML beyond its single keys: the rules, and the arguments inside of arguments."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any

from brushset.kohya.check.findings import did_you_mean
from brushset.kohya.check.options import IN_NETWORK_ARGS, known_flags
from brushset.kohya.check.rule import PLAIN_LORA, Rule, Settings
from brushset.kohya.check.rules_recipe import LENGTH, NETWORK, RATES
from brushset.kohya.check.rules_running import NOISE_AND_LOSS, OPTIMIZER, PRECISION, SAVING

TRAINING_RULES: tuple[Rule, ...] = (
    *RATES, *NETWORK, *LENGTH, *OPTIMIZER, *PRECISION, *NOISE_AND_LOSS, *SAVING,
)  # fmt: skip
# Network modules that train_network.py does not train on SD 1.5.
OTHER_NETWORKS: Mapping[str, str] = {
    "networks.lora_flux": "flux_train_network.py",
    "networks.oft_flux": "flux_train_network.py",
    "networks.lora_sd3": "sd3_train_network.py",
    "networks.lora_lumina": "lumina_train_network.py",
    "networks.lora_hunyuan_image": "hunyuan_image_train_network.py",
    "networks.lora_anima": "anima_train_network.py",
}
# Options that sd-scripts asks `is not None` of, so that an empty string is something given → what it does with it.
EMPTY_BITES: Mapping[str, str] = {
    "vae": "loading a VAE from no file fails",
    "in_json": "the dataset is taken for one of metadata, and fails",
    "network_weights": "loading weights from no file fails",
    "huggingface_repo_id": "it tries to upload to a repository without a name",
    "caption_extention": "no caption file is found, and images train with empty captions",
    "caption_extension": "no caption file is found, and images train with empty captions",
    "logging_dir": "logs go to the root of the disk",
    "output_name": "the file is named .safetensors",
    "train_data_dir": "the folder that it is started in is taken",
    "dataset_class": "importing no class fails",
}


def broken_rules(given: Mapping[str, Any]) -> Iterator[tuple[Rule, tuple[str, str, str]]]:
    """The rules that a flattened training TOML breaks, each with text, effect and fix."""
    settings = Settings(given)
    for rule in TRAINING_RULES:
        if rule.holds(settings):
            yield rule, rule.told(settings)


def numbers_are_numbers(given: Mapping[str, Any]) -> bool:
    """Whether the rules can be asked at all: keys of a wrong type are told of by themselves."""
    options = known_flags()["options"]
    for key, value in given.items():
        if options.get(key, {}).get("type") in ("int", "float", "number"):
            for item in value if isinstance(value, list) else [value]:
                if not isinstance(item, int | float):
                    return False
    return True


def argument_complaints(given: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Key, text, effect and fix of what is wrong within network_args, optimizer_args and lr_scheduler_args."""
    settings = Settings(given)
    yield from _network_arg_complaints(settings)
    yield from _optimizer_complaints(settings)
    for entry in _entries(settings["lr_scheduler_args"]):
        if complaint := _unreadable(entry):
            yield "lr_scheduler_args", f'lr_scheduler_args "{entry}": {complaint}', "sd-scripts stops", ""


def _network_arg_complaints(settings: Settings) -> Iterator[tuple[str, str, str, str]]:
    entries = _entries(settings["network_args"])
    names = [entry.partition("=")[0] for entry in entries]
    for entry, name in zip(entries, names, strict=True):
        if "=" not in entry:
            yield "network_args", f'network_args "{entry}" has no "="', "sd-scripts stops", f'"{entry}=…"'
        elif settings["network_module"] == PLAIN_LORA and name not in IN_NETWORK_ARGS:
            text = f'network_args "{name}" is not known to {PLAIN_LORA}{did_you_mean(name, IN_NETWORK_ARGS)}'
            fix = "network_dropout" if name == "dropout" else f"one of {', '.join(IN_NETWORK_ARGS)}"
            yield "network_args", text, "it is ignored without a word", fix
    if (
        settings["network_module"] == PLAIN_LORA
        and "conv_alpha" in names
        and not {"conv_dim", "conv_block_dims"} & set(names)
    ):
        yield "network_args", 'network_args "conv_alpha" without conv_dim', "it is ignored without a word", "conv_dim=…"


def _optimizer_complaints(settings: Settings) -> Iterator[tuple[str, str, str, str]]:
    flags, name = known_flags(), str(settings["optimizer_type"] or "AdamW")
    by_lower = {known.lower(): settings_of for known, settings_of in flags["optimizers"].items()}
    late = "sd-scripts stops, once models are loaded and latents cached"
    known = name.lower() in by_lower or "." in name or name in flags["torch_optimizers"]
    if not known:
        names = [*flags["optimizers"], *flags["torch_optimizers"]]
        meant = did_you_mean(name, names) or did_you_mean(name, by_lower)
        yield "optimizer_type", f'optimizer_type = "{name}" is no optimizer{meant}', late, "AdamW"
    accepted = by_lower.get(settings.optimizer)
    for entry in _entries(settings["optimizer_args"]):
        key = entry.partition("=")[0]
        if complaint := _unreadable(entry):
            yield "optimizer_args", f'optimizer_args "{entry}": {complaint}', late, ""
        elif accepted is not None and key not in accepted:
            text = f'optimizer_args "{key}" is no setting of {name}{did_you_mean(key, accepted)}'
            yield "optimizer_args", text, late, ""


def _unreadable(entry: str) -> str:
    """Why sd-scripts cannot read one `key=value`, whose value is a Python literal; empty where it can."""
    if entry.count("=") != 1:
        return 'expected one "="'
    value = entry.partition("=")[2]
    try:
        ast.literal_eval(value)
    except (ValueError, SyntaxError):
        if value.lower() in ("true", "false", "none"):
            return f"expected {value.title()}, as Python writes it"
        return f"expected a Python literal, not {value}; text needs quotes: \"'{value}'\""
    return ""


def _entries(value: object) -> list[str]:
    return [str(entry) for entry in value] if isinstance(value, list) else []
