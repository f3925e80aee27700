"""A LoRA file's metadata: read, rewritten and hashed without touching its tensors, and without torch.

A1111 knows a file by `sshs_model_hash`, SHA-256 of all bytes after the header, so rewriting the metadata keeps the
hash. The header must start with `{"` for A1111 to recognise a file as safetensors, so no padding goes in front. The
safetensors library puts metadata in another order each time; here it is sorted, so equal content gives equal bytes.
Rules: sd-scripts library/train_util.py (precalculate_safetensors_hashes), recomputed on its files.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path

from brushset.bases.header import TensorEntry, read_header
from brushset.errors import UsageError
from brushset.files import atomic_file

_CHUNK_BYTES = 1 << 20
LEGACY_START, LEGACY_BYTES = 0x100000, 0x10000  # what A1111's old hash reads of a file
LEGACY_PREFIX = "ss_"  # the legacy hash is taken of a copy that carries these alone


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a .safetensors file; all values are strings.

    Raises:
        UsageError: no such file, or not a whole safetensors file.
    """
    return dict(read_header(path).metadata)


def model_hash(path: Path) -> str:
    """`sshs_model_hash`: SHA-256 of all bytes after the header, which metadata does not change."""
    header = read_header(path)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(header.data_offset)
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def legacy_hash(path: Path) -> str:
    """`sshs_legacy_hash`: 8 hex digits of SHA-256 over 64 KiB at 1 MiB of a copy that carries only `ss_*` metadata."""
    header = read_header(path)
    kept = {key: value for key, value in header.metadata.items() if key.startswith(LEGACY_PREFIX)}
    start = header_bytes(header.tensors, kept)
    window = start[LEGACY_START : LEGACY_START + LEGACY_BYTES]
    with path.open("rb") as file:
        file.seek(header.data_offset + max(0, LEGACY_START - len(start)))
        window += file.read(LEGACY_BYTES - len(window))
    return short_hash(window)


def window_hash(path: Path) -> str:
    """A1111's old, short hash of a model file as it is: 8 hex digits of SHA-256 over 64 KiB that start at 1 MiB."""
    with path.open("rb") as file:
        file.seek(LEGACY_START)
        return short_hash(file.read(LEGACY_BYTES))


def short_hash(window: bytes) -> str:
    """The first 8 hex digits of SHA-256."""
    return hashlib.sha256(window).hexdigest()[:8]


def with_hashes(path: Path) -> dict[str, str]:
    """The file's metadata with both hashes as they are now."""
    return {**read_metadata(path), "sshs_model_hash": model_hash(path), "sshs_legacy_hash": legacy_hash(path)}


def rewrite_metadata(source: Path, target: Path, metadata: Mapping[str, str]) -> None:
    """Writes `source` under `target` with other metadata and the very same tensor bytes; both may be one file.

    Raises:
        UsageError: a value that is no string or is empty, which UIs trip over.
        EnvironmentProblem: the target cannot be written; what was there is untouched.
    """
    refuse_bad_values(metadata, target)
    header = read_header(source)
    start = header_bytes(header.tensors, metadata)
    with atomic_file(target) as out, source.open("rb") as file:
        out.write(start)
        file.seek(header.data_offset)
        shutil.copyfileobj(file, out, _CHUNK_BYTES)


def refuse_bad_values(metadata: Mapping[str, str], target: Path) -> None:
    """Raises UsageError where a value is no string, or empty: UIs trip over both."""
    wrong = sorted(key for key, value in metadata.items() if not isinstance(value, str) or not value)
    if wrong:
        raise UsageError(f"{target}: metadata {', '.join(wrong)}: a value must be a string that is not empty")


def header_bytes(tensors: Mapping[str, TensorEntry], metadata: Mapping[str, str]) -> bytes:
    """Length and JSON as the safetensors library lays them out: metadata first, tensors by offset, padded to 8."""
    content: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end, item[0])):
        content[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [entry.start, entry.end]}
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
