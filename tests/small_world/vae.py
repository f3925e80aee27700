"""The small world's VAE: SD's autoencoder, narrow, trained for minutes to draw what small_world.styles can draw.

A network this deep and narrow spends its first thousands of steps on learning to pass colours on. It is wired to do that
from the start: its first channels carry red, green and blue and their negatives, averaged on the way down and repeated on
the way up; silu(x) - silu(-x) = x takes them through the last activation, and two constant channels, +C and -C, keep the
group norms' statistics still. The residual branches begin at zero. What is left to learn is edges and textures.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from brushset.bases.configs import TINY, vae_config
from brushset.native.latents import VAE_SCALE
from small_world.draw import PX, draw_scene
from small_world.styles import CELL, STYLES, Picture, make_base_picture

if TYPE_CHECKING:
    import torch

WIDTHS = (16, 16, 32, 32)
PICTURES = 6000
CROP_PX = 32
CROP_STEPS, WHOLE_STEPS = 1000, 700
CROP_BATCH, WHOLE_BATCH = 12, 8
_CONSTANT = 4.0
_CARRIED = 8
"""Channels that are wired: three colours, their negatives, two constants."""


def small_vae_config() -> dict[str, Any]:
    """One group in its norms: with a channel a group, as SD's 32 would make of these widths, no colour would survive."""
    return {**vae_config(TINY), "block_out_channels": list(WIDTHS), "norm_num_groups": 1, "sample_size": PX}


def to_tensor(pictures: list[Picture]) -> torch.Tensor:
    """uint8 [N, 3, PX, PX]."""
    import numpy as np
    import torch

    return torch.from_numpy(np.stack([np.asarray(each.image) for each in pictures])).permute(0, 3, 1, 2).contiguous()


def draw_everything(seed: int) -> torch.Tensor:
    """All looks and styles: SD's VAE too has seen more than what one UNet draws."""
    rng = random.Random(f"vae/{seed}")
    pictures = [make_base_picture(rng) for _ in range(PICTURES // 2)]
    for _ in range(PICTURES - len(pictures)):
        scene = draw_scene(rng)
        pictures.append(Picture(STYLES[rng.choice(list(STYLES))](scene), "", ""))
    return to_tensor(pictures)


def train_vae(seed: int) -> Iterator[tuple[int, float, Any]]:
    """Yields (step, mean absolute error of the batch, the VAE): first on crops, then on whole pictures."""
    import torch
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    pixels = draw_everything(seed)
    vae = AutoencoderKL.from_config(small_vae_config())
    _wire(vae)
    step = 0
    for steps, batch, crop in ((CROP_STEPS, CROP_BATCH, CROP_PX), (WHOLE_STEPS, WHOLE_BATCH, PX)):
        optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-4)
        rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.2e-3, total_steps=steps, pct_start=0.05)
        for _ in range(steps):
            left, top = (torch.randint(0, (PX - crop) // CELL + 1, (2,)) * CELL).tolist()
            chosen = pixels[torch.randint(0, len(pixels), (batch,)), :, top : top + crop, left : left + crop]
            error = _descend(vae, optimizer, chosen.float() / 127.5 - 1)
            rates.step()
            step += 1
            yield step, error, vae


def normalise(vae: Any, pixels: torch.Tensor) -> None:
    """Shifts and scales the latents of these pictures to mean 0 and, times SD's constant factor, deviation 1."""
    import torch

    with torch.no_grad():
        means = torch.cat([vae.encode(part.float() / 127.5 - 1).latent_dist.mean for part in pixels.split(64)])
        shift, scale = means.mean((0, 2, 3)), 1 / (means.std() * VAE_SCALE)
        width = len(shift)
        vae.quant_conv.weight[:width] *= scale
        vae.quant_conv.bias[:width] = (vae.quant_conv.bias[:width] - shift) * scale
        vae.quant_conv.bias[width:] += 2 * scale.log()
        vae.post_quant_conv.bias += vae.post_quant_conv.weight[:, :, 0, 0] @ shift
        vae.post_quant_conv.weight /= scale


def _descend(vae: Any, optimizer: Any, pixels: torch.Tensor) -> float:
    """One step on absolute and squared error, on the error of neighbours' differences (edges), and a trace of KL."""
    import torch

    posterior = vae.encode(pixels).latent_dist
    error = vae.decode(posterior.sample()).sample - pixels
    across, down = error[..., 1:] - error[..., :-1], error[..., 1:, :] - error[..., :-1, :]
    mean_error = error.abs().mean()
    loss = mean_error + error.square().mean() + 0.3 * (across.abs().mean() + down.abs().mean())
    loss = loss + 1e-4 * posterior.kl().mean() / posterior.mean[0].numel()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
    optimizer.step()
    return float(mean_error.item())


def _wire(vae: Any) -> None:
    """Makes it an average of each cell's colours, see the head of this file."""
    import torch

    with torch.no_grad():
        for name, module in vae.named_modules():
            if name.endswith(("conv2", "to_out.0")):
                module.weight.zero_()
                module.bias.zero_()
            elif name.endswith("conv_shortcut"):
                module.weight.mul_(0.3)
                _carry(module, min(module.weight.shape[:2]), [(0, 0)], 1.0)
        for block in vae.encoder.down_blocks[:-1]:
            _carry(block.downsamplers[0].conv, _CARRIED, [(0, 0), (0, 1), (1, 0), (1, 1)], 0.25)
        for block in vae.decoder.up_blocks[:-1]:
            _carry(block.upsamplers[0].conv, _CARRIED, [(1, 1)], 1.0)
        for part, channels in ((vae.encoder, 3), (vae.decoder, 3)):
            _wire_ends(part, channels)
        vae.encoder.conv_out.weight[4:] = 0
        vae.encoder.conv_out.bias[4:] = -5  # logarithm of the posterior's variance: hardly any noise
        for conv in (vae.quant_conv, vae.post_quant_conv):
            conv.weight.copy_(torch.eye(len(conv.weight))[:, :, None, None])
            conv.bias.zero_()


def _carry(conv: Any, channels: int, places: list[tuple[int, int]], share: float) -> None:
    """Lets the first channels through a convolution, each on its own."""
    conv.weight[:channels] = 0
    conv.bias[:channels] = 0
    for channel in range(channels):
        for row, column in places:
            conv.weight[channel, channel, row, column] = share


def _wire_ends(part: Any, colours: int) -> None:
    """First and last convolution of encoder or decoder."""
    first, last = part.conv_in, part.conv_out
    first.weight.mul_(0.5)
    first.weight[:_CARRIED] = 0
    first.bias.zero_()
    first.bias[2 * colours], first.bias[2 * colours + 1] = _CONSTANT, -_CONSTANT
    last.weight[:colours] = 0
    last.bias.zero_()
    norm = _CONSTANT * (2 / last.in_channels) ** 0.5  # what the group norm divides by
    for colour in range(colours):
        first.weight[colour, colour, 1, 1], first.weight[colour + colours, colour, 1, 1] = 1, -1
        last.weight[colour, colour, 1, 1], last.weight[colour, colour + colours, 1, 1] = norm, -norm
