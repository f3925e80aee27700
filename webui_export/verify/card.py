"""Whether a model card is one that the Hugging Face hub takes: read by the hub's own library, with files that exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REQUIRED = ("license", "library_name", "pipeline_tag", "tags", "instance_prompt")
_FILES = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)|weight_name=\"([^\"]+)\"")


def model_card_faults(card: Path) -> Iterator[str]:
    """What is wrong with a README.md in the hub's form."""
    from huggingface_hub import ModelCard

    text = card.read_text(encoding="utf-8", errors="replace")
    if not text.startswith("---\n"):
        yield "has no YAML header: the hub would know neither licence nor base model"
        return
    try:
        data: Any = ModelCard(text).data
        header: dict[str, Any] = data.to_dict()
    except Exception as error:  # noqa: BLE001  a broken header is whatever the YAML reader makes of it
        yield f"its YAML header cannot be read: {str(error).splitlines()[0]}"
        return
    if missing := [key for key in REQUIRED if not header.get(key)]:
        yield f"its header lacks {', '.join(missing)}"
    for name in dict.fromkeys([*_shown(header.get("widget")), *_named(text)]):
        if "://" not in name and not (card.parent / name).is_file():
            yield f"names {name}, which is not beside it"


def _named(text: str) -> list[str]:
    return [found for pair in _FILES.findall(text) for found in pair if found]


def _shown(widget: Any) -> list[str]:
    """The pictures of the card's gallery."""
    items = widget if isinstance(widget, list) else []
    outputs = [item.get("output") for item in items if isinstance(item, dict)]
    return [str(output["url"]) for output in outputs if isinstance(output, dict) and "url" in output]
