"""What A1111 makes of a PNG's `parameters`: an account of its rules (modules/infotext_utils.py, 1.10.1), for tests.

Shares nothing with the writer. The pattern of a setting is A1111's own, since that is what is to be held to.
"""

from __future__ import annotations

import json
import re

SETTING = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
LORA_TAG = re.compile(r"<lora:([^:>]+):([^>]+)>")


def parse(text: str) -> dict[str, str]:
    """Prompt, negative prompt and settings by name."""
    *above, last = text.strip().split("\n")
    if len(SETTING.findall(last)) < 3:
        above, last = [*above, last], ""
    prompt: list[str] = []
    negative: list[str] = []
    target = prompt
    for line in map(str.strip, above):
        if line.startswith("Negative prompt:"):
            target = negative
            line = line.removeprefix("Negative prompt:").strip()  # noqa: PLW2901
        target.append(line)
    found = {"Prompt": "\n".join(prompt), "Negative prompt": "\n".join(negative)}
    for key, value in SETTING.findall(last):
        found[key] = json.loads(value) if value.startswith('"') else value
    return found


def lora_hashes(parsed: dict[str, str]) -> dict[str, str]:
    """Name → hash, split as extensions-builtin/Lora does on pasting."""
    pairs = (entry.strip().split(":", 1) for entry in parsed.get("Lora hashes", "").split(",") if entry.strip())
    return {name.strip(): digest.strip() for name, digest in pairs}
