"""The file that every UI loads: the one the trainer wrote, tensors byte for byte, with its header completed.

Never a conversion: measured in the UIs' own loaders, a diffusers round trip doubles the strength (alpha is lost) and
loses the attention layers in ComfyUI and everything in A1111, without a word. The stem is `ss_output_name`, since A1111
knows a file by either and takes the wrong one where they differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from brushset.bases.header import read_header
from brushset.errors import VerificationFailed
from brushset.lora.metadata import header_bytes, model_hash, rewrite_metadata, with_hashes
from brushset.protocols import ExportJob
from webui_export.header import complete_header
from webui_export.verify.header import MAX_HEADER_BYTES

# Whole lists of captions, which no UI needs; in this order they go where the header would be too large for ComfyUI.
_BULKY = ("ss_datasets", "ss_tag_frequency")
_HASHES_BYTES = 256  # what sshs_model_hash and sshs_legacy_hash add


def write_lora(job: ExportJob) -> list[str]:
    """Writes `job.lora`; returns notes on what had to go from the header.

    Raises:
        VerificationFailed: the copy's tensors are not the trainer's.
    """
    header = complete_header(job)
    dropped = write_with_header(job.weights, job.lora, header)
    if read_header(job.lora).tensors != read_header(job.weights).tensors or model_hash(job.lora) != model_hash(
        job.weights
    ):
        raise VerificationFailed(f"{job.lora}: its tensors are not those of {job.weights}; nothing was published")
    lost = f"{job.lora.name}: {', '.join(dropped)} left out, since ComfyUI shows no header of 1 MiB or more"
    return [f"{lost}; fix: [export] tag_frequency = minimal says it in less"] if dropped else []


def write_with_header(source: Path, target: Path, metadata: Mapping[str, str]) -> list[str]:
    """Writes the tensors of `source` under `target` with this header and its hashes; both may be one file. Returns the
    bulky fields that had to go.
    """
    told, dropped = dict(metadata), []
    for key in _BULKY:
        if len(header_bytes(read_header(source).tensors, told)) + _HASHES_BYTES < MAX_HEADER_BYTES:
            break
        dropped += [key] if told.pop(key, None) else []
    rewrite_metadata(source, target, told)
    rewrite_metadata(target, target, with_hashes(target))
    return dropped
