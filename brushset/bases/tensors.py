"""Tensors from and to .safetensors files, with the failures of the format and of the disk as ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from brushset.bases.header import read_header
from brushset.errors import EnvironmentProblem

if TYPE_CHECKING:
    import torch


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a file, on the CPU; its header is checked first.

    Raises:
        UsageError: no such file, a pickle, or not whole.
    """
    from safetensors.torch import load_file

    read_header(path)
    return dict(load_file(path))


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a file that others may read, marked as PyTorch's as diffusers and transformers demand.

    Raises:
        EnvironmentProblem: the disk is full or the folder cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(dict(tensors), path, metadata={"format": "pt", **(metadata or {})})
        path.chmod(0o644)
    except (OSError, SafetensorError) as error:
        raise EnvironmentProblem(
            f"{path}: cannot be written: {error}; fix: free the disk or its permissions"
        ) from error
