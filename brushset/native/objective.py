"""What is minimised: the error of the predicted noise, weighted by how much signal is left.

DDPM with Stable Diffusion's betas (arXiv 2006.11239, eq. 14), 1000 timesteps, noise prediction. What depends on a sample's
timestep alone (its weight, its threshold) is a table of 1000, made once on the CPU. How noise is drawn: brushset.native.noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from brushset.native.settings import TrainingKeys

if TYPE_CHECKING:
    import torch

TIMESTEPS = 1000
_BETA_FIRST, _BETA_LAST = 0.00085, 0.012


@dataclass(frozen=True)
class Corruption:
    """What is done to a batch of latents: the noise, float32 like the latents, and each sample's timestep [N]."""

    noise: torch.Tensor
    timesteps: torch.Tensor


@dataclass(frozen=True)
class Loss:
    """How a difference counts: "l2" squared, "l1" absolute, "huber" and "smooth_l1" as pseudo-Huber losses with
    sd-scripts' factors, quadratic below a sample's threshold [N] and linear above it.
    """

    kind: str = "l2"
    thresholds: torch.Tensor | None = None

    def of(self, difference: torch.Tensor) -> torch.Tensor:
        """The loss of each number, [N, …]."""
        if self.kind == "l1":
            return difference.abs()
        if self.thresholds is None:
            return difference.square()
        bends = self.thresholds.view(-1, *[1] * (difference.dim() - 1))
        bent = 2 * ((difference.square() + bends.square()).sqrt() - bends)
        return bends * bent if self.kind == "huber" else bent


SQUARED = Loss()


def signal_shares(*, ends_at_zero: bool = False) -> torch.Tensor:
    """ᾱ of every timestep, float32 [1000]: the share of the signal's variance that is left ("scaled linear" betas).
    `ends_at_zero` stretches √ᾱ so that none is left at the last one: arXiv 2305.08891, algorithm 1.
    """
    import torch

    betas = torch.linspace(_BETA_FIRST**0.5, _BETA_LAST**0.5, TIMESTEPS, dtype=torch.float32) ** 2
    shares = torch.cumprod(1.0 - betas, dim=0)
    if not ends_at_zero:
        return shares
    roots = shares.sqrt()
    return ((roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))) ** 2


def corrupt(latents: torch.Tensor, corruption: Corruption, shares: torch.Tensor) -> torch.Tensor:
    """√ᾱ · latents + √(1 - ᾱ) · noise."""
    left = shares[corruption.timesteps].view(-1, 1, 1, 1)
    return left.sqrt() * latents + (1.0 - left).sqrt() * corruption.noise


def min_snr_weights(timesteps: torch.Tensor, shares: torch.Tensor, gamma: float) -> torch.Tensor:
    """min(SNR, γ) / SNR with SNR = ᾱ / (1 - ᾱ), [N]: arXiv 2303.09556, for noise prediction."""
    left = shares[timesteps]
    ratio = left / (1.0 - left)
    return ratio.clamp(max=gamma) / ratio


def debiased_weights(timesteps: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """1 / √SNR, where the SNR counts as 1000 at most, [N]: arXiv 2310.08442."""
    left = shares[timesteps]
    return (left / (1.0 - left)).clamp(max=1000.0).rsqrt()


def sample_weights(training: TrainingKeys) -> torch.Tensor:
    """The weight of a sample's loss at each timestep, [1000]. As in sd-scripts, of SD's own betas in any case."""
    import torch

    every, shares = torch.arange(TIMESTEPS), signal_shares()
    weights = torch.ones(TIMESTEPS)
    if training.min_snr_gamma:
        weights = weights * min_snr_weights(every, shares, training.min_snr_gamma)
    if training.debiased_estimation_loss:
        weights = weights * debiased_weights(every, shares)
    return weights


def huber_thresholds(training: TrainingKeys) -> torch.Tensor | None:
    """The error at each timestep beyond which it counts linearly, [1000]; None where the loss has no such. The schedules
    are sd-scripts': falling from 1 to huber_c by e^-t, or as 1 / (1 + σ)².
    """
    import torch

    if training.loss_type not in {"huber", "smooth_l1"}:
        return None
    least, every = training.huber_c, torch.arange(TIMESTEPS)
    if training.huber_schedule == "constant":
        return torch.full((TIMESTEPS,), least * training.huber_scale)
    if training.huber_schedule == "exponential":
        return torch.exp(every * (math.log(least) / TIMESTEPS)) * training.huber_scale
    shares = signal_shares(ends_at_zero=training.zero_terminal_snr)
    sigmas = ((1.0 - shares) / shares) ** 0.5
    return (1 - least) / (1 + sigmas) ** 2 + least


def noise_losses(
    predicted: torch.Tensor, noise: torch.Tensor, weights: torch.Tensor, *, styles: int, loss: Loss = SQUARED
) -> torch.Tensor:
    """Each style's loss [styles]: the mean over its samples of a sample's mean error times its weight [N].

    A batch holds equally many samples of each style, one style after the other. In the noise's precision, float32.
    """
    errors = loss.of(predicted.to(noise.dtype) - noise).flatten(1).mean(dim=1)
    return (errors * weights).view(styles, -1).mean(dim=1)
