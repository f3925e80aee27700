"""Tensors to a LoRA file whose bytes depend on its content alone, with the hashes that UIs know it by.

Tensors stand in the safetensors library's own order (wide dtypes first, then by name), so `sshs_model_hash` is what
sd-scripts would compute; metadata is sorted, where the library draws an order anew each time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from brushset.bases.header import TensorEntry
from brushset.files import write_atomic
from brushset.lora.metadata import (
    LEGACY_BYTES,
    LEGACY_PREFIX,
    LEGACY_START,
    header_bytes,
    refuse_bad_values,
    short_hash,
)

if TYPE_CHECKING:
    import torch

_NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # of what a LoRA is made of
# The library puts these after one another, whatever their names (safetensors/src/tensor.rs, prepare).
_ORDER = ("F64", "F32", "BF16", "F16")


def save_adapter(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    """Writes a LoRA file, whole or not at all, and returns its SHA-256.

    Raises:
        UsageError: a metadata value that is empty or no string.
        EnvironmentProblem: the disk is full or the folder cannot be written.
    """
    refuse_bad_values(metadata, path)
    content = adapter_bytes(tensors, metadata)
    write_atomic(path, content)
    return hashlib.sha256(content).hexdigest()


def adapter_bytes(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """The file's bytes, with `sshs_model_hash` and `sshs_legacy_hash` added to the metadata."""
    ordered = sorted(tensors.items(), key=lambda item: (_ORDER.index(_dtype(item[1])), item[0]))
    entries = dict(_lay_out(ordered))
    data = b"".join(_raw(tensor) for _, tensor in ordered)
    kept = {key: value for key, value in metadata.items() if key.startswith(LEGACY_PREFIX)}
    copy = header_bytes(entries, kept)
    window = copy[LEGACY_START : LEGACY_START + LEGACY_BYTES]
    start = max(0, LEGACY_START - len(copy))
    window += data[start : start + LEGACY_BYTES - len(window)]
    hashes = {"sshs_model_hash": hashlib.sha256(data).hexdigest(), "sshs_legacy_hash": short_hash(window)}
    return header_bytes(entries, {**metadata, **hashes}) + data


def _lay_out(ordered: list[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, TensorEntry]]:
    start = 0
    for name, tensor in ordered:
        end = start + tensor.numel() * tensor.element_size()
        yield name, TensorEntry(_dtype(tensor), tuple(tensor.shape), start, end)
        start = end


def _dtype(tensor: torch.Tensor) -> str:
    return _NAMES[str(tensor.dtype).removeprefix("torch.")]


def _raw(tensor: torch.Tensor) -> bytes:
    """The tensor's bytes; little-endian, as all machines that run torch are."""
    import torch

    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
