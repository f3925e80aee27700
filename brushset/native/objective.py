"""What is minimised: the error of the predicted noise, weighted by how much signal is left.

DDPM with Stable Diffusion's betas (arXiv 2006.11239, eq. 14), 1000 timesteps, noise prediction. All draws come from a
CPU generator, so that the same seed means the same noise on every device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

TIMESTEPS = 1000
_BETA_FIRST, _BETA_LAST = 0.00085, 0.012


@dataclass(frozen=True)
class Corruption:
    """What is done to a batch of latents: the noise, float32 like the latents, and each sample's timestep [N]."""

    noise: torch.Tensor
    timesteps: torch.Tensor


def signal_shares() -> torch.Tensor:
    """ᾱ of every timestep, float32 [1000]: the share of the signal's variance that is left ("scaled linear" betas)."""
    import torch

    betas = torch.linspace(_BETA_FIRST**0.5, _BETA_LAST**0.5, TIMESTEPS, dtype=torch.float32) ** 2
    return torch.cumprod(1.0 - betas, dim=0)


def draw_corruption(shape: Sequence[int], generator: torch.Generator, *, noise_offset: float | None) -> Corruption:
    """Gaussian noise for latents [N, 4, h, w] and uniform timesteps, on the CPU. An offset adds one further draw to each
    channel as a whole.
    """
    import torch

    noise = torch.randn(tuple(shape), generator=generator)
    if noise_offset:
        noise = noise + noise_offset * torch.randn((*shape[:2], 1, 1), generator=generator)
    timesteps = torch.randint(0, TIMESTEPS, (shape[0],), generator=generator)
    return Corruption(noise, timesteps)


def corrupt(latents: torch.Tensor, corruption: Corruption, shares: torch.Tensor) -> torch.Tensor:
    """√ᾱ · latents + √(1 - ᾱ) · noise."""
    left = shares[corruption.timesteps].view(-1, 1, 1, 1)
    return left.sqrt() * latents + (1.0 - left).sqrt() * corruption.noise


def min_snr_weights(timesteps: torch.Tensor, shares: torch.Tensor, gamma: float) -> torch.Tensor:
    """min(SNR, γ) / SNR with SNR = ᾱ / (1 - ᾱ), [N]: arXiv 2303.09556, for noise prediction."""
    left = shares[timesteps]
    ratio = left / (1.0 - left)
    return ratio.clamp(max=gamma) / ratio


def noise_losses(predicted: torch.Tensor, noise: torch.Tensor, weights: torch.Tensor, *, styles: int) -> torch.Tensor:
    """Each style's loss [styles]: the mean over its samples of a sample's mean squared error times its weight [N].

    A batch holds equally many samples of each style, one style after the other. In the noise's precision, float32.
    """
    errors = (predicted.to(noise.dtype) - noise).square().flatten(1).mean(dim=1)
    return (errors * weights).view(styles, -1).mean(dim=1)
