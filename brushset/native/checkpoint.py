"""The file that training leaves: Kohya's tensors and metadata, whole or not at all.

The two hashes in the metadata are what UIs index LoRA files by: `sshs_model_hash` is SHA-256 over the tensors' bytes;
`sshs_legacy_hash` is the WebUI's old hash of a copy that holds only the `ss_*` metadata (e3b0c442, the hash of nothing,
where that copy is shorter than 1 MiB).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from brushset.errors import TrainerFailed
from brushset.files import write_atomic
from brushset.native.metadata import LEGACY_BYTES, LEGACY_START, short_hash

if TYPE_CHECKING:
    import torch


def checkpoint_name(output_name: str, epoch: int | None = None) -> str:
    """`cartoon-000003.safetensors`, or `cartoon.safetensors` for the last one."""
    return f"{output_name}.safetensors" if epoch is None else f"{output_name}-{epoch:06d}.safetensors"


def hash_tensors(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """The two `sshs_*` fields of a file with these tensors and this metadata."""
    from safetensors.torch import save

    kept = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    content = save(dict(tensors), kept)
    start = 8 + int.from_bytes(content[:8], "little")
    return {
        "sshs_model_hash": hashlib.sha256(content[start:]).hexdigest(),
        "sshs_legacy_hash": short_hash(content[LEGACY_START : LEGACY_START + LEGACY_BYTES]),
    }


def write_checkpoint(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    """Writes tensors and metadata, the hashes added, and returns the file's SHA-256.

    Raises:
        TrainerFailed: a tensor is not finite; nothing is written.
        EnvironmentProblem: the disk is full or the folder cannot be written.
    """
    import torch
    from safetensors.torch import save

    broken = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise TrainerFailed(
            f"{path.name}: {len(broken)} of {len(tensors)} tensors hold NaN or infinity, {broken[0]} first; "
            'lower the learning rate, or set mixed_precision = "bf16"'
        )
    content = save(dict(tensors), {**metadata, **hash_tensors(tensors, metadata)})
    write_atomic(path, content)
    return hashlib.sha256(content).hexdigest()


def finish_metadata(metadata: Mapping[str, str], *, epoch: int, step: int) -> dict[str, str]:
    """The run's metadata with what differs from file to file."""
    return {**metadata, "ss_epoch": str(epoch), "ss_steps": str(step), "ss_training_finished_at": str(time.time())}
