"""A WD tagger that is one matrix: mean colour of the padded image → sigmoid → tags. ONNX written byte by byte.

Fields are those of onnx.proto (ONNX, Apache-2.0). It needs no weights and no `onnx` package, and tells whether pixels
arrive as a WD tagger wants them: BGR, 0 to 255, the image on a white square.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

SIZE = 32
ROWS = (
    (1, "general", 9, (0, 0, 0, 9)),
    (2, "explicit", 9, (0, 0, 0, 9)),
    (3, "red_hair", 0, (0, 0, 0.1, -12)),
    (4, "blue_sky", 0, (0.1, 0, 0, -12)),
    (5, "^_^", 0, (0, 0, 0, 1)),
    (6, "faint_tag", 0, (0, 0, 0, -1)),
    (7, "hatsune_miku", 4, (0, 0, 0, 2)),
    (8, "doubtful_person", 4, (0, 0, 0, 1)),
)
"""tag_id, name, category, and weights of blue, green, red and one."""


def write_tagger(folder: Path, *, batch: int | None = None, rows: int = len(ROWS)) -> Path:
    """Writes model.onnx and selected_tags.csv; `batch` fixes the model's batch, `rows` cuts the list of tags."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(_model(batch))
    lines = ["tag_id,name,category,count", *(f"{tag},{name},{kind},100" for tag, name, kind, _ in ROWS[:rows])]
    (folder / "selected_tags.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def _model(batch: int | None) -> bytes:
    weights = np.array([row[3][:3] for row in ROWS], np.float32).T
    bias = np.array([row[3][3] for row in ROWS], np.float32)
    nodes = [
        _node("ReduceMean", ["input"], "mean", _ints("axes", [1, 2]) + _int("keepdims", 0)),
        _node("MatMul", ["mean", "weights"], "product"),
        _node("Add", ["product", "bias"], "sum"),
        _node("Sigmoid", ["sum"], "output"),
    ]
    graph = b"".join(_bytes(1, node) for node in nodes) + _bytes(2, b"tiny")
    graph += _bytes(5, _tensor("weights", weights)) + _bytes(5, _tensor("bias", bias))
    graph += _bytes(11, _value("input", [batch, SIZE, SIZE, 3])) + _bytes(12, _value("output", [batch, len(ROWS)]))
    return _number(1, 8) + _bytes(7, graph) + _bytes(8, _bytes(1, b"") + _number(2, 13))


def _node(kind: str, inputs: Sequence[str], output: str, attributes: bytes = b"") -> bytes:
    return (
        b"".join(_bytes(1, name.encode()) for name in inputs)
        + _bytes(2, output.encode())
        + _bytes(4, kind.encode())
        + attributes
    )


def _ints(name: str, values: Sequence[int]) -> bytes:
    return _bytes(5, _bytes(1, name.encode()) + b"".join(_number(8, value) for value in values) + _number(20, 7))


def _int(name: str, value: int) -> bytes:
    return _bytes(5, _bytes(1, name.encode()) + _number(3, value) + _number(20, 2))


def _tensor(name: str, array: np.ndarray) -> bytes:
    dims = b"".join(_number(1, size) for size in array.shape)
    data = struct.pack(f"<{array.size}f", *array.ravel())
    return dims + _number(2, 1) + _bytes(8, name.encode()) + _bytes(9, data)


def _value(name: str, shape: Sequence[int | None]) -> bytes:
    dims = b"".join(_bytes(1, _bytes(2, b"N") if size is None else _number(1, size)) for size in shape)
    return _bytes(1, name.encode()) + _bytes(2, _bytes(1, _number(1, 1) + _bytes(2, dims)))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
