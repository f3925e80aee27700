"""What a .safetensors file says of itself, read without torch and without trust.

The file is an unsigned 64-bit length, that many bytes of JSON, then the tensors' bytes. Every number in it is held
against the file's size before it is used; a pickle is told from its first bytes, and never opened.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brushset.errors import UsageError

MAX_HEADER_BYTES = 64 << 20  # SDXL's is 0.3 MB; below what a zip's first bytes would mean, so that no file is both
_ELEMENT_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
}


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of the header. Offsets count from the header's end."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """All that a file says before its tensors. `data_offset` is where their bytes begin."""

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    data_offset: int

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a tensor, or None where there is none of that name."""
        entry = self.tensors.get(name)
        return entry.shape if entry else None


def read_header(path: Path) -> Header:
    """Reads and checks the header of a .safetensors file.

    Raises:
        UsageError: no such file, a pickle, or a header that is not whole; the message says which.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(9)
            length = struct.unpack("<Q", start[:8])[0] if len(start) == 9 else 0
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8) or start[8:] != b"{":
                raise _no_safetensors(path, start, size)
            file.seek(8)
            text = file.read(length)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    return _parse(path, text, data_bytes=size - 8 - length)


def _no_safetensors(path: Path, start: bytes, size: int) -> UsageError:
    """Looked at only where the header is none: 80 and PK are also the beginnings of good lengths."""
    if start[:2] == b"PK" or start[:1] == b"\x80":
        return UsageError(
            f"{path}: a pickle (.ckpt, .bin or .pt by content), which runs code when loaded; "
            "fix: use the model's .safetensors file"
        )
    return UsageError(f"{path}: not a safetensors file, or cut short ({size} bytes)")


def _parse(path: Path, text: bytes, *, data_bytes: int) -> Header:
    try:
        content: Any = json.loads(text, object_pairs_hook=_once_each)
        metadata = _strings(content.pop("__metadata__", {}))
        tensors = {name: _entry(name, item) for name, item in content.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{path}: its safetensors header is broken: {error}") from error
    last = 0
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != last:
            raise UsageError(f"{path}: its safetensors header is broken: {name} starts at {entry.start}, not at {last}")
        last = entry.end
    if last != data_bytes:
        raise UsageError(f"{path}: {data_bytes} bytes of tensors where its header says {last}: cut short or damaged")
    return Header(tensors, metadata, 8 + len(text))


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of a name that stands twice JSON would keep the last, and another reader the first."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} stands twice")
    return found


def _strings(metadata: Any) -> dict[str, str]:
    if not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("a metadata value is no string")
    return dict(metadata)


def _entry(name: str, item: Any) -> TensorEntry:
    start, end = item["data_offsets"]
    dtype, shape = item["dtype"], tuple(item["shape"])
    if not all(isinstance(number, int) and number >= 0 for number in (start, end, *shape)):
        raise ValueError(f"{name}: a size that is no size")
    if dtype in _ELEMENT_BYTES and end - start != math.prod(shape) * _ELEMENT_BYTES[dtype]:
        raise ValueError(f"{name}: {end - start} bytes do not hold {dtype} {list(shape)}")
    return TensorEntry(dtype, shape, start, end)
