"""Noise, timesteps and loss against diffusers' scheduler and the papers' formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler

from brushset.native.noise import draw_noise
from brushset.native.objective import (
    Corruption,
    corrupt,
    min_snr_weights,
    noise_losses,
    signal_shares,
)
from brushset.native.settings import TrainingKeys


def recipe(**changes: Any) -> TrainingKeys:
    keys = {"seed": 1, "output_name": "x", "network_module": "networks.lora"}
    return TrainingKeys.model_validate({**keys, **changes})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_signal_shares_are_those_of_stable_diffusions_scheduler() -> None:
    reference = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    assert torch.equal(signal_shares(), reference.alphas_cumprod)
    latents = torch.randn(4, 4, 8, 8, generator=generator())
    made = draw_noise(latents.shape, generator(1), recipe())
    expected = reference.add_noise(latents, made.noise, made.timesteps)
    corruption = Corruption(made.noise, made.timesteps)
    assert torch.allclose(corrupt(latents, corruption, signal_shares()), expected, atol=1e-6)


def test_timesteps_are_uniform_over_all_thousand() -> None:
    drawn = draw_noise((50_000, 1, 1, 1), generator(), recipe()).timesteps
    assert (drawn.min(), drawn.max()) == (0, 999)
    assert drawn.float().mean() == pytest.approx(499.5, abs=6)  # four standard errors


def test_the_same_generator_draws_the_same_noise() -> None:
    latents = torch.zeros(2, 4, 8, 8)
    first, second = (draw_noise(latents.shape, generator(5), recipe(noise_offset=0.1)) for _ in range(2))
    assert torch.equal(first.noise, second.noise)
    assert torch.equal(first.timesteps, second.timesteps)


def test_a_noise_offset_moves_whole_channels() -> None:
    latents = torch.zeros(64, 4, 32, 32)
    plain = draw_noise(latents.shape, generator(), recipe()).noise
    moved = draw_noise(latents.shape, generator(), recipe(noise_offset=0.5)).noise - plain
    assert moved.std(dim=(2, 3)).max() < 1e-6
    assert moved.mean(dim=(2, 3)).std() == pytest.approx(0.5, rel=0.2)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weights_are_the_papers(gamma: float) -> None:
    shares = signal_shares().double()
    ratio = shares / (1 - shares)
    expected = torch.minimum(ratio, torch.tensor(gamma)) / ratio
    made = min_snr_weights(torch.arange(1000), signal_shares(), gamma)
    assert torch.allclose(made.double(), expected, rtol=1e-3)
    assert made[-1] == 1.0  # much noise: full weight
    assert made[0] < 0.01  # hardly any: next to none


def test_the_loss_is_the_weighted_mean_of_each_samples_error() -> None:
    noise = torch.randn(3, 4, 8, 8, generator=generator())
    predicted = torch.randn(3, 4, 8, 8, generator=generator(1))
    made = Corruption(noise, torch.tensor([0, 500, 999]))
    errors = [((predicted[i] - noise[i]) ** 2).mean() for i in range(3)]
    whole = torch.ones(3)
    plain = noise_losses(predicted, made.noise, whole, styles=1)
    assert plain.tolist() == pytest.approx([sum(errors).item() / 3], rel=1e-6)
    assert noise_losses(predicted, made.noise, whole, styles=3).tolist() == pytest.approx([e.item() for e in errors])
    weights = min_snr_weights(made.timesteps, signal_shares(), 5.0)
    weighted = noise_losses(predicted, made.noise, weights, styles=1)
    assert weighted.item() == pytest.approx(
        sum(w * e for w, e in zip(weights, errors, strict=True)).item() / 3, rel=1e-6
    )
