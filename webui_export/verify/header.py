"""What is wrong with a LoRA file's header: what UIs trip over, and what they go by.

A1111 (sd_models.py) asserts that a header starts with `{"`, shows `sshs_model_hash` as the file's hash without computing
it, and calls the file by `ss_output_name`; Forge goes by `modelspec.architecture`, SwarmUI by `modelspec.*`. ComfyUI
shows no header above 1 MiB.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from brushset.bases.header import Header
from brushset.lora.kinds import some
from brushset.lora.metadata import legacy_hash, model_hash
from webui_export.names import STEM, is_reserved

MAX_HEADER_BYTES = 1 << 20
THUMBNAIL_PX = 256
NO_VALUES = ("", "None", "IsADirectory")  # `float("None")` and `"".items()` break A1111's cards
ARCHITECTURE = "stable-diffusion-v1/lora"
REQUIRED = (
    "ss_output_name", "ss_base_model_version", "ss_v2", "ss_network_dim", "ss_network_alpha", "sshs_model_hash",
    *(f"modelspec.{key}" for key in (
        "sai_model_spec", "architecture", "implementation", "title", "author", "description", "date", "resolution",
        "trigger_phrase", "tags", "license", "usage_hint", "hash_sha256", "lora_default_weight",
    )),
)  # fmt: skip
_FIXED = {
    "ss_base_model_version": ("sd_v1", "A1111 hides it from SD 1 models"),
    "ss_v2": ("False", "A1111 takes it for SD 2"),
    "modelspec.architecture": (ARCHITECTURE, "Forge and SwarmUI take it for another model"),
}
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}(T\d{2}:\d{2}(:\d{2})?.*)?")
_LEAST_TRIGGER_SHARE = 0.95


def header_faults(file: Path, header: Header) -> Iterator[str]:
    """What is wrong, a line each, without the file's name."""
    metadata = header.metadata
    yield from _form(file, header)
    if missing := [key for key in REQUIRED if key not in metadata]:
        yield f"its header lacks {', '.join(missing)}"
    for key, (right, why) in _FIXED.items():
        if key in metadata and metadata[key] != right:
            yield f'{key} is "{metadata[key]}" instead of "{right}": {why}'
    yield from _name(file, metadata)
    yield from _hashes(file, metadata)
    yield from _told(metadata)
    if picture := metadata.get("modelspec.thumbnail"):
        yield from _thumbnail(picture)


def _form(file: Path, header: Header) -> Iterator[str]:
    length = header.data_offset - 8
    with file.open("rb") as opened:
        opened.seek(8)
        start = opened.read(2)
    if start != b'{"':
        yield f'its header starts with {start.decode(errors="replace")!r}, A1111 reads only {{"'
    if length >= MAX_HEADER_BYTES:
        yield f"its header has {length} bytes: ComfyUI shows none of 1 MiB or more; fix: [export] tag_frequency"
    if empty := sorted(key for key, value in header.metadata.items() if value in NO_VALUES):
        yield f"{len(empty)} header values are empty or None, on which A1111's card breaks: {some(empty)}"


def _name(file: Path, metadata: Mapping[str, str]) -> Iterator[str]:
    if not STEM.fullmatch(file.stem) or is_reserved(file.stem):
        yield f'A1111 cannot call a LoRA "{file.stem}": letters, digits, _ and - alone; none and Addams are its own'
    alias = metadata.get("ss_output_name")
    if alias is not None and alias != file.stem:
        yield f'ss_output_name is "{alias}": A1111 calls the file by that, not by its own name'


def _hashes(file: Path, metadata: Mapping[str, str]) -> Iterator[str]:
    digest = model_hash(file)
    right = {"sshs_model_hash": digest, "modelspec.hash_sha256": f"0x{digest}", "sshs_legacy_hash": legacy_hash(file)}
    for key, value in right.items():
        if key in metadata and metadata[key] != value:
            yield f"{key} is {metadata[key][:14]}…, its tensors' is {value[:14]}…"


def _told(metadata: Mapping[str, str]) -> Iterator[str]:
    if (date := metadata.get("modelspec.date")) and not _DATE.fullmatch(date):
        yield f'modelspec.date is "{date}", not a date as in 2025-01-31'
    weight = metadata.get("modelspec.lora_default_weight")
    if weight is not None and not 0 < _number(weight) <= 2:
        yield f'modelspec.lora_default_weight is "{weight}": SwarmUI wants a number, above 0 and at most 2'
    trigger = metadata.get("modelspec.trigger_phrase", "")
    for folder, share in _trigger_shares(metadata, trigger).items():
        if share < _LEAST_TRIGGER_SHARE:
            yield f'the trigger "{trigger}" is in {share:.0%} of the captions of "{folder}": it does not call the style'


def _trigger_shares(metadata: Mapping[str, str], trigger: str) -> dict[str, float]:
    """Folder → share of its captions that have the trigger as a tag, where the header tells both counts."""
    tags, folders = _table(metadata.get("ss_tag_frequency", "")), _table(metadata.get("ss_dataset_dirs", ""))
    shares = {}
    for folder, counts in tags.items():
        images = folders.get(folder, {}).get("img_count") if isinstance(folders.get(folder), dict) else None
        if trigger and isinstance(images, int) and images and isinstance(counts, dict):
            have = sum(count for tag, count in counts.items() if tag.strip() == trigger)
            shares[folder] = min(1.0, have / images)
    return shares


def _thumbnail(picture: str) -> Iterator[str]:
    from PIL import Image

    head, _, body = picture.partition(",")
    try:
        with Image.open(io.BytesIO(base64.b64decode(body, validate=True))) as image:
            found = (image.format, *image.size)
    except (binascii.Error, OSError):
        found = ("no picture", 0, 0)
    if head != "data:image/jpeg;base64" or found != ("JPEG", THUMBNAIL_PX, THUMBNAIL_PX):
        yield f"modelspec.thumbnail is {found[0]} {found[1]}×{found[2]} as {head[:32]}, not a JPEG of 256×256 as data:image/jpeg;base64"


def _table(text: str) -> dict[str, dict[str, int]]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
