"""Which other program is this key, or this whole file, written for?

programs.json holds the settings of the trainers and front ends that people take files from, as they stood at the
commits it names, without those that train_network.py knows itself; flags.json those of sd-scripts' other scripts.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from brushset.files import read_json
from brushset.kohya.check.options import known_flags
from brushset.kohya.check.rules import OTHER_NETWORKS

PROGRAMS_FILE = Path(__file__).with_name("programs.json")
_GUI_TABLES = frozenset(("settings", "server", "folders", "configuration", "accelerate_launch", "wd14_caption"))
_GUI_JSON_KEYS = frozenset(
    ("LoRA_type", "max_resolution", "model_list", "sdxl", "lr_warmup", "stop_text_encoder_training")
)


@functools.cache
def known_programs() -> dict[str, Any]:
    """programs.json: name → `repository`, `commit`, `keys`."""
    return dict(read_json(PROGRAMS_FILE))


def programs_of(key: str) -> list[str]:
    """The programs that have a setting of this name and are not sd-scripts."""
    return [name for name, program in known_programs().items() if key in program["keys"]]


def scripts_of(key: str) -> list[str]:
    """The other scripts of sd-scripts that have an option of this name, those that train LoRAs first."""
    return list(known_flags()["elsewhere"].get(key, ()))


def program_of_file(tables: Mapping[str, Any]) -> str:
    """The program that a file as a whole was written for, where its shape shows that; else an empty string."""
    if len(_GUI_TABLES & tables.keys()) >= 3:
        return "kohya_ss GUI, as its own config.toml: folders and defaults of the GUI"
    if any(isinstance(value, Mapping) and isinstance(value.get("args"), Mapping) for value in tables.values()):
        return "LoRA_Easy_Training_Scripts (derrian-distro)"
    if isinstance(tables.get("adapter"), Mapping) and isinstance(tables.get("model"), Mapping):
        return "diffusion-pipe"
    if isinstance(tables.get("directory"), list):
        return "diffusion-pipe, as its dataset file"
    datasets = tables.get("datasets")
    directories = ("image_directory", "video_directory", "image_jsonl_file", "video_jsonl_file")
    if isinstance(datasets, list) and any(
        isinstance(item, Mapping) and any(key in item for key in directories) for item in datasets
    ):
        return "musubi-tuner, as its dataset file"
    if "trigger" in tables and "name" in tables and not isinstance(tables["name"], Mapping):
        return "brushset: it is a style, for orchestrate.py --style"
    return ""


def program_of_json(content: object) -> str:
    """The program that writes such a JSON file, or an empty string."""
    if not isinstance(content, Mapping):
        return ""
    if len(_GUI_JSON_KEYS & content.keys()) >= 2:
        return 'kohya_ss GUI, as saved by it; its button "Print training command" writes the TOML for sd-scripts'
    if {"training_method", "workspace_dir"} <= content.keys():
        return "OneTrainer"
    return ""


def script_of_file(flat: Mapping[str, Any]) -> tuple[str, str]:
    """The other script of sd-scripts that a training TOML was written for, and what shows it; empty where none does."""
    module = flat.get("network_module")
    if isinstance(module, str) and module in OTHER_NETWORKS:
        return OTHER_NETWORKS[module], f'network_module = "{module}"'
    model_type = str(flat.get("model_train_type", ""))
    for start, script in (
        ("sdxl", "sdxl_train_network.py"),
        ("flux", "flux_train_network.py"),
        ("sd3", "sd3_train_network.py"),
    ):
        if model_type.startswith(start):
            return script, f'model_train_type = "{model_type}"'
    model = str(flat.get("pretrained_model_name_or_path", "")).replace("\\", "/").rpartition("/")[2].lower()
    for mark, script in (
        ("sd_xl", "sdxl_train_network.py"),
        ("sdxl", "sdxl_train_network.py"),
        ("flux", "flux_train_network.py"),
        ("sd3", "sd3_train_network.py"),
    ):
        if mark in model:
            return script, f'the base model is "{model}"'
    return "", ""
