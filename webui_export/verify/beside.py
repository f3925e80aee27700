"""What lies beside a LoRA: the card's settings, its picture, and nothing that a UI would take for a caption.

A1111 and Forge read `<stem>.json` (extra_networks.py) and `<stem>.preview.png`; `<stem>.txt` would become the
description, a caption-like file of a data set too. SwarmUI reads the same three.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from webui_export.verify.workflow import read_content

CARD_KEYS: Mapping[str, type | tuple[type, ...]] = {
    "description": str, "sd version": str, "activation text": str, "preferred weight": (int, float),
    "negative text": str, "notes": str,
}  # fmt: skip
MAX_PREVIEW_BYTES = 1_000_000
PREVIEW_SIZES = "at most 768 high and 512 wide"
CARD_FOLDERS = ("Lora",)  # of A1111, Forge and SwarmUI; ComfyUI's is called loras
_CAPTIONS = (".txt", ".caption", ".description", ".tags", ".cap")


def card_faults(lora: Path, metadata: Mapping[str, str]) -> Iterator[str]:
    """What is wrong with a file's card, a line each; cards are wanted in A1111's, Forge's and SwarmUI's folders."""
    card = lora.with_suffix(".json")
    if not card.is_file():
        if lora.parent.name in CARD_FOLDERS:
            yield f"{card.name}: is missing: the card would have no trigger and no weight"
        return
    content = read_content(card)
    if not isinstance(content, dict):
        yield f"{card.name}: is no JSON object: A1111 shows an empty card"
        return
    if wrong := sorted(CARD_KEYS.keys() ^ content.keys()):
        yield f"{card.name}: lacks or does not know the keys {', '.join(wrong)}"
    for key, kind in CARD_KEYS.items():
        if key in content and (not isinstance(content[key], kind) or isinstance(content[key], bool)):
            yield f'{card.name}: "{key}" is {content[key]!r}, where {"a number" if key == "preferred weight" else "text"} belongs'
    yield from _card_values(card.name, content, metadata)


def _card_values(name: str, content: Mapping[str, Any], metadata: Mapping[str, str]) -> Iterator[str]:
    trigger, weight = metadata.get("modelspec.trigger_phrase"), content.get("preferred weight")
    if content.get("sd version", "SD1") != "SD1":
        yield f'{name}: "sd version" is {content["sd version"]!r}: A1111 hides the card from SD 1 models'
    if trigger and content.get("activation text", trigger) != trigger:
        yield f'{name}: "activation text" is {content["activation text"]!r}, the file\'s trigger "{trigger}"'
    if isinstance(weight, int | float) and not isinstance(weight, bool):
        told = metadata.get("modelspec.lora_default_weight")
        if not 0 < weight <= 2:
            yield f'{name}: "preferred weight" is {weight:g}: 0 switches it off, above 2 is noise'
        elif told and f"{weight:g}" != told:
            yield f'{name}: "preferred weight" is {weight:g}, the file says {told}'


def preview_faults(lora: Path, metadata: Mapping[str, str]) -> Iterator[str]:
    """What is wrong with a file's picture, where there is one."""
    picture = lora.with_suffix(".preview.png")
    if not picture.is_file():
        return
    yield from picture_faults(picture)
    if picture.stat().st_size >= MAX_PREVIEW_BYTES:
        yield f"{picture.name}: has {picture.stat().st_size} bytes, where less than {MAX_PREVIEW_BYTES} belong"
    if metadata and "modelspec.thumbnail" not in metadata:
        yield f"{lora.name}: has a preview beside it and no modelspec.thumbnail, which SwarmUI shows"


def picture_faults(picture: Path) -> Iterator[str]:
    """Whether it is a whole PNG of a size that cards take."""
    from PIL import Image

    try:
        with Image.open(picture) as image:
            image.load()
            kind, (width, height) = image.format, image.size
    except (OSError, SyntaxError, ValueError) as error:
        yield f"{picture.name}: is no picture that can be read: {error}"
        return
    if kind != "PNG":
        yield f"{picture.name}: is {kind} by content"
    if width > 512 or height > 768 or (width != height and width * 3 != height * 2):
        yield f"{picture.name}: is {width}×{height}, where a square or 2:3, {PREVIEW_SIZES}, belongs"


def stray_faults(folder: Path, stems: set[str]) -> Iterator[str]:
    """Files in a LoRA's folder that a UI would read as something else."""
    for path in sorted(folder.iterdir()):
        if path.suffix in _CAPTIONS:
            whose = "its description" if path.name.split(".")[0] in stems else "a caption"
            yield f"{path.name}: lies beside a LoRA: A1111 takes it for {whose}"
