"""What noise is added to a batch of latents, and at which timesteps?

sd-scripts' variants (`library.train_util.get_noise_noisy_latents_and_timesteps` at v0.10.1), in its order. All draws come
from a CPU generator, so that the same seed means the same noise on every device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from brushset.native.settings import TrainingKeys

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class DrawnNoise:
    """The noise that is to be predicted, [N, 4, h, w]; the noise that is added, where that is another; timesteps [N]."""

    noise: torch.Tensor
    timesteps: torch.Tensor
    added: torch.Tensor | None = None


def draw_noise(shape: Sequence[int], generator: torch.Generator, training: TrainingKeys) -> DrawnNoise:
    """Gaussian noise for latents [N, 4, h, w] and uniform timesteps, on the CPU, as the recipe has them."""
    import torch

    noise = torch.randn(tuple(shape), generator=generator)
    if training.noise_offset:
        strength = _strength(training.noise_offset, generator, random=training.noise_offset_random_strength)
        noise = noise + strength * torch.randn((*shape[:2], 1, 1), generator=generator)
    if training.multires_noise_iterations:
        noise = add_pyramid(noise, generator, training.multires_noise_iterations, training.multires_noise_discount)
    timesteps = torch.randint(*training.timesteps, (shape[0],), generator=generator)
    if not training.ip_noise_gamma:
        return DrawnNoise(noise, timesteps)
    strength = _strength(training.ip_noise_gamma, generator, random=training.ip_noise_gamma_random_strength)
    return DrawnNoise(noise, timesteps, noise + strength * torch.randn(tuple(shape), generator=generator))


def add_pyramid(noise: torch.Tensor, generator: torch.Generator, levels: int, discount: float) -> torch.Tensor:
    """Adds coarser and coarser noise, each level smaller by a random factor from 2 to 4 and weaker by `discount`, and
    scales the batch to unit deviation ("multi-resolution noise", wandb.ai/johnowhitaker/multires_noise).
    """
    import torch
    from torch.nn.functional import interpolate

    count, channels, height, width = noise.shape
    for level in range(levels):
        factor = torch.rand((), generator=generator).item() * 2 + 2
        size = (max(1, int(height / factor**level)), max(1, int(width / factor**level)))
        coarse = torch.randn((count, channels, *size), generator=generator)
        noise = noise + interpolate(coarse, size=(height, width), mode="bilinear") * discount**level
        if 1 in size:
            break
    return noise / noise.std()


def _strength(most: float, generator: torch.Generator, *, random: bool) -> float:
    """The given strength, or one drawn from 0 up to it for the whole batch."""
    import torch

    return float(torch.rand(1, generator=generator)) * most if random else most
