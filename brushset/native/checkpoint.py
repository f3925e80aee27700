"""The file that training leaves: Kohya's tensors and metadata, whole or not at all.

The two hashes in the metadata are what UIs index LoRA files by: `sshs_model_hash` is SHA-256 over the tensors' bytes;
`sshs_legacy_hash` is the WebUI's old hash of a copy that holds only the `ss_*` metadata (e3b0c442, the hash of nothing,
where that copy is shorter than 1 MiB).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from brushset.errors import TrainerFailed
from brushset.lora.save import save_adapter

if TYPE_CHECKING:
    import torch


def checkpoint_name(output_name: str, epoch: int | None = None) -> str:
    """`cartoon-000003.safetensors`, or `cartoon.safetensors` for the last one."""
    return f"{output_name}.safetensors" if epoch is None else f"{output_name}-{epoch:06d}.safetensors"


def write_checkpoint(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    """Writes tensors and metadata, the hashes added, and returns the file's SHA-256.

    Raises:
        TrainerFailed: a tensor is not finite; nothing is written.
        EnvironmentProblem: the disk is full or the folder cannot be written.
    """
    import torch

    broken = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise TrainerFailed(
            f"{path.name}: {len(broken)} of {len(tensors)} tensors hold NaN or infinity, {broken[0]} first; "
            'lower the learning rate, or set mixed_precision = "bf16"'
        )
    told = {key: value for key, value in metadata.items() if value}  # UIs trip over empty values
    return save_adapter(path, tensors, told)


def finish_metadata(metadata: Mapping[str, str], *, epoch: int, step: int) -> dict[str, str]:
    """The run's metadata with what differs from file to file."""
    return {**metadata, "ss_epoch": str(epoch), "ss_steps": str(step), "ss_training_finished_at": str(time.time())}
