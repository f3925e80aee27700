"""The file that every UI loads: the one the trainer wrote, tensors byte for byte, with its metadata completed.

Never a conversion: measured in the UIs' own loaders, a diffusers round trip doubles the strength (alpha is lost) and
loses the attention layers in ComfyUI and everything in A1111, without a word. The stem is `ss_output_name`, since A1111
knows a file by either and takes the wrong one where they differ.
"""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path, PurePath

from brushset.errors import UsageError, VerificationFailed
from brushset.lora.metadata import model_hash, read_metadata, rewrite_metadata, with_hashes
from brushset.protocols import ExportJob

MAX_HEADER_BYTES = 1 << 20
PREVIEW_PX = 512
_THUMBNAIL_PX = 256
_STEM = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
# A1111 gives these two a meaning of its own.
_RESERVED = {"none", "addams"}
# `float("None")` and `"".items()` break A1111's cards; a folder as base model leaves the third.
_NO_VALUES = {"", "None", "IsADirectory"}
# Whole lists of captions, not needed by any UI; in this order they go where the header would grow too large.
_BULKY = ("ss_datasets", "ss_tag_frequency")


def lora_stem(job: ExportJob) -> str:
    """The file's name without suffix, its `ss_output_name` and the name in `<lora:…>`.

    Raises:
        UsageError: a name that prompts cannot hold, or that A1111 keeps for itself.
    """
    stem = job.spec.name
    if not _STEM.match(stem) or stem.lower() in _RESERVED:
        raise UsageError(f'style "{stem}": A1111 cannot call a LoRA by this name; fix: rename the style')
    return stem


def write_lora(job: ExportJob) -> Path:
    """Writes `<stem>.safetensors` into the job's folder.

    Raises:
        VerificationFailed: the copy's tensors or header are not what every UI accepts.
    """
    target = job.folder / f"{lora_stem(job)}.safetensors"
    rewrite_metadata(job.weights, target, complete_metadata(job))
    rewrite_metadata(target, target, with_hashes(target))
    if header_bytes(target) > MAX_HEADER_BYTES:
        slim = {key: value for key, value in with_hashes(target).items() if key not in _BULKY}
        rewrite_metadata(target, target, slim)
        rewrite_metadata(target, target, with_hashes(target))
    _verify(job.weights, target)
    return target


def complete_metadata(job: ExportJob) -> dict[str, str]:
    """The trainer's metadata without empty values, and what UIs read besides; hashes of the tensors included."""
    spec, stem = job.spec, lora_stem(job)
    metadata = read_metadata(job.weights)
    digest = model_hash(job.weights)
    metadata.setdefault("modelspec.sai_model_spec", "1.0.1")
    metadata.setdefault("modelspec.implementation", "diffusers")
    metadata.setdefault("modelspec.prediction_type", "epsilon")
    metadata.setdefault("modelspec.resolution", f"{spec.dataset.resolution}x{spec.dataset.resolution}")
    metadata |= {
        "ss_output_name": stem,
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "sshs_model_hash": digest,
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.title": f"{stem} (SD 1.5)",
        "modelspec.description": describe(job),
        "modelspec.trigger_phrase": spec.trigger,
        "modelspec.usage_hint": f"Put {spec.trigger} first in the prompt; weight {spec.export.weight:g}.",
        "modelspec.lora_default_weight": f"{spec.export.weight:g}",
        "modelspec.hash_sha256": f"0x{digest}",
        "modelspec.thumbnail": _thumbnail(job.preview) if job.preview else "",
    }
    return {key: value for key, value in metadata.items() if value not in _NO_VALUES}


def base_name(model: str) -> str:
    """A base model's name as strangers may read it: of a path on this machine only its last part."""
    return PurePath(model).name if PurePath(model).is_absolute() or model[:1] in ".~" else model


def describe(job: ExportJob) -> str:
    """One line for people, which says so where the file proves only that the machinery runs."""
    text = (job.spec.description or f"Style LoRA for Stable Diffusion 1.5, trigger {job.spec.trigger}").rstrip(
        ". "
    ) + "."
    if job.trained.base_random:
        return f"{text} Trained on a base model of random numbers: it shows that the machinery runs, nothing more."
    if job.spec.smoke:
        return f"{text} Smoke run of {job.trained.steps} steps: it shows that the machinery runs, nothing more."
    return text


def write_preview(job: ExportJob) -> Path | None:
    """Writes `<stem>.preview.png`, at most 512 pixels wide and high, where there is an image to show."""
    if job.preview is None:
        return None
    from PIL import Image

    target = job.folder / f"{lora_stem(job)}.preview.png"
    with Image.open(job.preview) as image:
        small = image.convert("RGB")
        small.thumbnail((PREVIEW_PX, PREVIEW_PX))
        small.save(target, optimize=True)
    return target


def header_bytes(path: Path) -> int:
    """Length of a safetensors file's JSON header."""
    with path.open("rb") as file:
        return int.from_bytes(file.read(8), "little")


def _thumbnail(preview: Path) -> str:
    """A data URI of a JPEG of 256 × 256 pixels, some 10 kB, as ModelSpec 1.0.1 wants it."""
    from PIL import Image, ImageOps

    with Image.open(preview) as image:
        small = ImageOps.fit(image.convert("RGB"), (_THUMBNAIL_PX, _THUMBNAIL_PX))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _verify(source: Path, target: Path) -> None:
    with target.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = file.read(size)
    with source.open("rb") as file:
        original = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    written = json.loads(header)
    findings = []
    if not header.startswith(b'{"') or size > MAX_HEADER_BYTES:
        findings.append(f'{target}: a header of {size} bytes that starts with {header[:2]!r}; UIs want {{" and ≤ 1 MiB')
    if {**written, "__metadata__": 0} != {**original, "__metadata__": 0} or model_hash(source) != model_hash(target):
        findings.append(f"{target}: its tensors are not those of {source}")
    if written["__metadata__"].get("sshs_model_hash") != model_hash(target):
        findings.append(f"{target}: sshs_model_hash is not the hash of its tensors")
    if findings:
        raise VerificationFailed.of_many(findings)
