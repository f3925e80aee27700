"""What an engine draws, before it is rounded to eight bits: for differences smaller than that."""

from __future__ import annotations

from typing import Any

import torch

from brushset.generation.engine import Engine
from brushset.generation.settings import Picture, Sampling


def draw_unrounded(engine: Engine, picture: Picture, sampling: Sampling) -> Any:
    """Pixels float32 [3, height, width], 0 to 1."""
    vae = engine.components.vae
    with torch.no_grad():
        latents = engine._sampler.sample([picture], sampling)
        pixels = vae.decode(latents / vae.config.scaling_factor).sample[0]
    return (pixels / 2 + 0.5).clamp(0, 1)
