"""Alpha where no tensor says it: from diffusers' adapter metadata or PEFT's adapter_config.json, else the rank.

PEFT scales by alpha/r, or alpha/√r with `use_rslora`; both configs give one alpha and exceptions by module path. Files
in diffusers' older layouts have no alpha at all and diffusers loads them unscaled, so alpha is the rank there (read in
diffusers 0.39: utils/peft_utils.py get_peft_kwargs). Configs come with downloads: what is not understood is refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brushset.bases.header import Header
from brushset.errors import UsageError
from brushset.lora.keys import Component
from brushset.lora.layouts import Layout

CONFIG_NAME = "adapter_config.json"
ORIGIN_KEY = "brushset.kohya"  # what a Kohya file said, in the metadata of the diffusers form that we write
_IN_METADATA = "lora_adapter_metadata"
_MAX_CONFIG_BYTES = 1 << 20
_PLAIN_PATH = re.compile(r"\^?[\w.\\]+\$?")


@dataclass(frozen=True)
class Config:
    """What a LoraConfig says of strength."""

    alpha: float
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    root_of_rank: bool = False

    def alpha_of(self, path: str, rank: int) -> float:
        """The alpha that, over the rank, gives the module's scale."""
        alpha = next((value for key, value in self.alpha_pattern.items() if _names(key, path)), self.alpha)
        return alpha * math.sqrt(rank) if self.root_of_rank else alpha


def stated_configs(header: Header, file: Path) -> dict[Component, Config]:
    """What is said of each component, in the file's metadata or in a config beside it.

    Raises:
        UsageError: a config that does not parse, or says of a method that is no plain LoRA.
    """
    if text := header.metadata.get(_IN_METADATA):
        content = _parsed(text, f"{file}: {_IN_METADATA}")
        return {
            component: _config(
                {
                    key.removeprefix(f"{component}."): value
                    for key, value in content.items()
                    if key.startswith(component)
                },
                f"{file}: {_IN_METADATA} {component}",
            )
            for component in ("unet", "text_encoder")
            if any(key.startswith(f"{component}.") for key in content)
        }
    beside = file.parent / CONFIG_NAME
    if file.name != "adapter_model.safetensors" or not beside.is_file():
        return {}
    if beside.stat().st_size > _MAX_CONFIG_BYTES:
        raise UsageError(f"{beside}: {beside.stat().st_size} bytes; a config has at most {_MAX_CONFIG_BYTES}")
    try:
        text = beside.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{beside}: cannot be read: {error}") from error
    config = _config(_parsed(text, str(beside)), str(beside))
    return {"unet": config, "text_encoder": config}


def is_alpha_stated(header: Header, configs: Mapping[Component, Config], layout: Layout) -> bool:
    """Whether a file says what its alphas are, or were before they were folded in; else the rank is taken."""
    return (
        bool(configs) or ORIGIN_KEY in header.metadata or all("alpha" in keys.parts for keys in layout.modules.values())
    )


def _parsed(text: str, source: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{source}: is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{source}: is no table of settings")
    return content


def _config(content: Mapping[str, Any], source: str) -> Config:
    kind = content.get("peft_type", "LORA")
    if kind != "LORA":
        raise UsageError(f"{source}: {kind}; this takes a plain LoRA of SD 1.5 alone")
    for key in ("use_dora", "fan_in_fan_out", "modules_to_save", "lora_bias", "layer_replication"):
        if content.get(key):
            raise UsageError(f"{source}: {key} is set; this takes a plain LoRA of SD 1.5 alone")
    pattern = content.get("alpha_pattern") or {}
    alpha = content.get("lora_alpha")
    if (
        alpha is None
        or not _is_number(alpha)
        or not isinstance(pattern, dict)
        or not all(map(_is_number, pattern.values()))
    ):
        raise UsageError(f"{source}: lora_alpha = {alpha!r}, alpha_pattern = {pattern!r}: numbers are expected")
    if odd := [key for key in pattern if not _PLAIN_PATH.fullmatch(key)]:
        raise UsageError(f"{source}: alpha_pattern names modules by {odd[0]!r}; plain paths are understood alone")
    return Config(float(alpha), {key: float(value) for key, value in pattern.items()}, bool(content.get("use_rslora")))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _names(key: str, path: str) -> bool:
    """Whether a key of alpha_pattern means a module: PEFT takes the whole path, or its end behind a dot."""
    plain = key.removeprefix("^").removesuffix("$").replace("\\.", ".")
    return path == plain or (not key.startswith("^") and path.endswith(f".{plain}"))
