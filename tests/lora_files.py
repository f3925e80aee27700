"""LoRA files with the real keys, for tests: `up` is large enough that a lost module shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from brushset.bases.configs import TINY, Architecture
from brushset.lora.keys import expected_shapes


def lora_state(
    *, architecture: Architecture = TINY, dim: int = 4, alpha: float = 2.0, seed: int = 0, text_encoder: bool = True
) -> dict[str, Any]:
    """A Kohya state dict in float32, filled from N(0, 0.1)."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.tensor(alpha) if name.endswith(".alpha") else 0.1 * torch.randn(shape, generator=generator)
        for name, shape in expected_shapes(dim, text_encoder=text_encoder, architecture=architecture).items()
    }


def write_lora(path: Path, *, dtype: str = "float32", metadata: dict[str, str] | None = None, **recipe: Any) -> Path:
    """Writes `lora_state(**recipe)` as a Kohya file."""
    import torch
    from safetensors.torch import save_file

    state = {name: tensor.to(getattr(torch, dtype)) for name, tensor in lora_state(**recipe).items()}
    save_file(state, path, metadata=metadata)
    return path
