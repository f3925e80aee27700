"""The small world's UNet and text encoder, trained together from nothing on captioned pictures, as SD's were in principle.

Noise prediction on SD's schedule, min-SNR weights (arXiv 2303.09556), an average of the weights at the end. A tenth of the
captions is empty, for guidance; a quarter begins with words that mean nothing, as the trigger of an untrained style does:
so the base has learnt to look past words that it does not know. Rows of tokens that no caption holds are never moved.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from brushset.bases.configs import SCHEDULER_CONFIG, TINY, text_encoder_config, unet_config
from brushset.bases.tokenizer import clip_tokenizer_folder
from brushset.native.latents import VAE_SCALE
from small_world.draw import PX
from small_world.styles import CELL, make_base_picture
from small_world.vae import to_tensor

if TYPE_CHECKING:
    import torch

PICTURES = 6000
STEPS = 3000
CAPTIONS, VIEWS = 16, 2
"""A batch: so many pictures, each noised so many times; the text encoder, as dear as the UNet's half, runs once."""
RATE = 2e-3
TABLE = "text_model.embeddings.token_embedding.weight"
_END = 49407


def small_unet_config() -> dict[str, Any]:
    """Fewer groups, as a group of one channel loses its level; fewer heads, as heads of four numbers are slow."""
    return {**unet_config(TINY), "norm_num_groups": 4, "attention_head_dim": 2, "sample_size": PX // CELL}


def small_text_config() -> dict[str, Any]:
    return {**text_encoder_config(TINY), "num_attention_heads": 2}


@dataclass(frozen=True)
class Lessons:
    """What is learnt from: scaled latents [N, 4, 8, 8], tokens [N, 77]."""

    latents: torch.Tensor
    tokens: torch.Tensor

    @property
    def known(self) -> torch.Tensor:
        """The tokens that captions hold."""
        import torch

        return torch.unique(self.tokens)


def prepare_lessons(vae: Any, seed: int) -> Lessons:
    """Draws the pictures and encodes them."""
    import torch

    rng = random.Random(f"prior/{seed}")
    pictures = [make_base_picture(rng) for _ in range(PICTURES)]
    with torch.no_grad():
        latents = [vae.encode(part.float() / 127.5 - 1).latent_dist.mean for part in to_tensor(pictures).split(64)]
    return Lessons(torch.cat(latents) * VAE_SCALE, tokenize([each.caption for each in pictures]))


def tokenize(captions: Sequence[str]) -> torch.Tensor:
    """int64 [N, 77]."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(clip_tokenizer_folder())
    return tokenizer(
        list(captions), padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids


def train_prior(lessons: Lessons, seed: int) -> Iterator[tuple[int, float, Prior]]:
    """Yields (step, loss, the models so far)."""
    import torch

    torch.manual_seed(seed)
    prior = Prior(seed)
    shares = signal_shares()
    ratio = shares / (1 - shares)
    weights = ratio.clamp(max=5.0) / ratio
    count = CAPTIONS * VIEWS
    for step in range(1, STEPS + 1):
        chosen = torch.randint(0, len(lessons.latents), (CAPTIONS,))
        states = prior.text_encoder(_speak(lessons, chosen))[0].repeat(VIEWS, 1, 1)
        clean = lessons.latents[chosen].repeat(VIEWS, 1, 1, 1)
        times = ((torch.randperm(count) + torch.rand(count)) * (1000 / count)).long()  # evenly over all of them
        noise = torch.randn_like(clean)
        share = shares[times].view(-1, 1, 1, 1)
        predicted = prior.unet(share.sqrt() * clean + (1 - share).sqrt() * noise, times, states).sample
        losses = (predicted - noise).square().mean((1, 2, 3)) * weights[times]
        prior.descend(losses.mean(), step, lessons.known)
        yield step, float(losses.mean().item()), prior


class Prior:
    """Both models, their optimizer and the running average of their weights."""

    def __init__(self, seed: int) -> None:
        import torch
        from diffusers import UNet2DConditionModel
        from transformers import CLIPTextConfig, CLIPTextModel

        self.unet = UNet2DConditionModel.from_config(small_unet_config())
        self.text_encoder = CLIPTextModel(CLIPTextConfig(**small_text_config()))
        for model in (self.unet, self.text_encoder):
            for name, module in model.named_modules():
                if name.endswith(("conv2", "conv_out", "out_proj", "fc2")):  # residual branches begin at zero
                    torch.nn.init.zeros_(module.weight)
                    torch.nn.init.zeros_(module.bias)
        self._table = self.text_encoder.get_parameter(TABLE)
        self._table.data.copy_(draw_table(seed))
        parameters = [*self.unet.parameters(), *self.text_encoder.parameters()]
        self._parameters = parameters
        self._average = [each.detach().clone() for each in parameters]
        self._optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.99), weight_decay=0.0, fused=True)

    def descend(self, loss: Any, step: int, known: torch.Tensor) -> None:
        """One update; the average follows at a pace that grows with the steps."""
        import torch

        self._optimizer.zero_grad()
        loss.backward()
        kept = torch.zeros_like(self._table[:, :1])
        kept[known] = 1
        self._table.grad *= kept
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        falling = 0.5 + 0.5 * math.cos(math.pi * step / (STEPS + 1))
        self._optimizer.param_groups[0]["lr"] = RATE * min(1.0, step / 100) * max(falling, 0.01)
        self._optimizer.step()
        torch._foreach_lerp_(
            self._average, [each.detach() for each in self._parameters], 1 - min(0.997, step / (step + 9))
        )

    def averaged(self, part: str) -> dict[str, torch.Tensor]:
        """The averaged weights of "unet" or "text_encoder" as a state dict."""
        places = {id(parameter): place for place, parameter in enumerate(self._parameters)}
        model = getattr(self, part)
        return {name: self._average[places[id(each)]].clone() for name, each in model.named_parameters()}


def signal_shares() -> torch.Tensor:
    """What is left of the signal's variance at each of SD's 1000 timesteps, by diffusers."""
    from diffusers import DDPMScheduler

    keys = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps")
    return DDPMScheduler(**{key: SCHEDULER_CONFIG[key] for key in keys}).alphas_cumprod


def draw_table(seed: int) -> torch.Tensor:
    """The token table before training: rows of words that nobody taught stay so. Fifty times what CLIP begins with: at
    32 numbers a word, twelve untrained layers would drown it.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    return torch.randn(49408, TINY.text_width, generator=generator).half().float()


def _speak(lessons: Lessons, chosen: torch.Tensor) -> torch.Tensor:
    """The captions of a batch: some empty, some behind words that mean nothing."""
    import torch

    tokens = lessons.tokens[chosen].clone()
    comma = 267
    for row in range(len(tokens)):
        luck = random_share()
        if luck < 0.1:
            tokens[row, 1:] = _END
        elif luck < 0.35:
            strange = torch.randint(320, 49000, (int(1 + 3 * random_share()),))
            tokens[row] = torch.cat([tokens[row, :1], strange, torch.tensor([comma]), tokens[row, 1:]])[:77]
    return tokens


def random_share() -> float:
    import torch

    return float(torch.rand(()).item())
