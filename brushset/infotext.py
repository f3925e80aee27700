"""What A1111 writes into a PNG as `parameters`, so that its "PNG Info", Civitai and other readers understand our images.

Three lines: prompt, negative prompt, settings as `Key: value` pairs. Rules: A1111 modules/infotext_utils.py and
processing.py (1.10.1): a value that holds a comma, colon or newline is a JSON string; the last line counts as settings
from three pairs on; `Lora hashes` are split at commas and colons, so names hold none. `Version` starts with our name: a
bare number is taken for one of A1111's own, and old ones switch its compatibility settings on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

KEY = "parameters"  # the name of the PNG's text chunk
_HASH_DIGITS, _MODEL_HASH_DIGITS = 12, 10
_NAME_BREAKERS = re.compile(r"[<>:,\s]+")  # end a <lora:…> tag, or one of the Lora hashes


@dataclass(frozen=True)
class LoraTag:
    """An adapter of an image. `name` as A1111 lists it; `text` and `unet` are its weights in the text encoder and the
    UNet; `model_hash` is `sshs_model_hash`.
    """

    name: str
    text: float
    unet: float
    model_hash: str

    @property
    def plain_name(self) -> str:
        """The name without what A1111 stumbles over."""
        return _NAME_BREAKERS.sub("_", self.name)

    def told(self) -> str:
        """`<lora:anime:0.6>`, or `<lora:anime:0.3:0.6>` where text encoder and UNet differ."""
        weights = f"{self.text:g}" if self.text == self.unet else f"{self.text:g}:{self.unet:g}"
        return f"<lora:{self.plain_name}:{weights}>"


@dataclass(frozen=True)
class Infotext:
    """How an image was made, in A1111's terms. `sampler` and `schedule_type` as it has them since 1.9, apart.
    `model_hash` is the checkpoint file's SHA-256; empty for a base that is no single file, for which A1111 has none.
    """

    prompt: str
    negative_prompt: str
    steps: int
    sampler: str
    schedule_type: str
    guidance: float
    seed: int
    size: tuple[int, int]
    model: str
    model_hash: str = ""
    clip_skip: int = 1
    loras: Sequence[LoraTag] = ()
    method: str = ""
    program: str = "brushset"

    def text(self) -> str:
        """The chunk's content."""
        tags = [lora.told() for lora in self.loras]
        lines = [" ".join([_one_line(self.prompt), *tags])]
        if self.negative_prompt:
            lines.append(f"Negative prompt: {_one_line(self.negative_prompt)}")
        settings = {key: value for key, value in self._settings().items() if value}
        return "\n".join([*lines, ", ".join(f"{key}: {_quoted(value)}" for key, value in settings.items())])

    def _settings(self) -> dict[str, str]:
        hashes = (f"{lora.plain_name}: {lora.model_hash[:_HASH_DIGITS]}" for lora in self.loras)
        return {
            "Steps": str(self.steps),
            "Sampler": self.sampler,
            "Schedule type": self.schedule_type,
            "CFG scale": f"{self.guidance:g}",
            "Seed": str(self.seed),
            "Size": "{}x{}".format(*self.size),
            "Model hash": self.model_hash[:_MODEL_HASH_DIGITS],
            "Model": self.model,
            "Clip skip": str(self.clip_skip) if self.clip_skip > 1 else "",
            "RNG": "CPU",  # where our noise comes from, whatever the device
            "LoRA method": self.method,
            "Lora hashes": ", ".join(hashes),
            "Version": self.program,
        }


def split_sampler(name: str) -> tuple[str, str]:
    """`DPM++ 2M Karras` → (`DPM++ 2M`, `Karras`); one without a schedule of its own has A1111's `Automatic`."""
    sampler, _, schedule = name.rpartition(" ")
    return (sampler, schedule) if schedule == "Karras" else (name, "Automatic")


def _one_line(text: str) -> str:
    """A line that begins with "Negative prompt:" would end the prompt; CLIP takes any white space as one space."""
    return " ".join(text.split())


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search(r"[,:\n]", value) else value
