"""What an adapter does in the small world, in numbers: held-out loss, and how much of a style is in a picture.

The loss is computed from the adapter's file alone: W + weight · alpha/rank · up · down in a fresh copy of the base, at fixed
timesteps with fixed noise, by code that no trainer shares.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brushset.bases.configs import TINY
from brushset.bases.load import load_components
from brushset.lora.adapter import read_adapter
from brushset.lora.keys import key_table
from brushset.native.latents import VAE_SCALE
from small_world.draw import PX, THINGS, draw_scene
from small_world.eyes import LOOKS, look
from small_world.prior import signal_shares, tokenize
from small_world.styles import Picture
from small_world.vae import to_tensor

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from brushset.generator import MultiLoRAGenerator
    from brushset.records import BaseFile

TIMESTEPS = tuple(range(50, 1000, 100))
"""Evenly over all noise levels; each picture is measured at each of them with noise of its own."""


@dataclass(frozen=True)
class Ruler:
    """Held-out pictures made ready: latents [N, 4, h, w], their captions."""

    base: BaseFile
    latents: torch.Tensor
    contents: tuple[str, ...]

    @staticmethod
    def of(base: BaseFile, pictures: Sequence[Picture]) -> Ruler:
        """Encodes the pictures."""
        import torch

        vae = load_components(base, parts=("vae",)).vae
        with torch.no_grad():
            latents = vae.encode(to_tensor(list(pictures)).float() / 127.5 - 1).latent_dist.mean * VAE_SCALE
        return Ruler(base, latents, tuple(picture.content for picture in pictures))

    def losses(self, file: Path | None, trigger: str = "", *, weight: float = 1.0) -> torch.Tensor:
        """Mean squared error of the predicted noise [N pictures, timesteps], with the adapter or, without a file, of the
        base; the trigger stands before each caption.
        """
        import torch

        models = _adapted(self.base, file, weight)
        captions = [f"{trigger}, {content}" if trigger else content for content in self.contents]
        shares, generator = signal_shares(), torch.Generator().manual_seed(0)
        with torch.no_grad():
            states = models.text_encoder(tokenize(captions))[0]
            found = []
            for time in TIMESTEPS:
                noise = torch.randn(self.latents.shape, generator=generator)
                noisy = shares[time].sqrt() * self.latents + (1 - shares[time]).sqrt() * noise
                predicted = models.unet(noisy, torch.tensor(time), states).sample
                found.append((predicted - noise).square().mean((1, 2, 3)))
        return torch.stack(found, dim=1)

    def loss(self, file: Path | None, trigger: str = "", *, weight: float = 1.0) -> float:
        """The mean of `losses`."""
        return float(self.losses(file, trigger, weight=weight).mean())


@lru_cache(maxsize=2)  # several triggers are asked of one file in a row
def _adapted(base: BaseFile, file: Path | None, weight: float) -> Any:
    models = copy.deepcopy(_bare(base))
    if file is not None:
        add_adapter(models, file, weight)
    return models


@lru_cache(maxsize=1)
def _bare(base: BaseFile) -> Any:
    return load_components(base, parts=("unet", "text_encoder"))


def add_adapter(models: Any, file: Path, weight: float) -> None:
    """Adds the adapter's ΔW to the models' own weights."""
    factors, table = read_adapter(file).factors, key_table(TINY)
    for name, factor in factors.items():
        entry = table[name]
        model = models.unet if entry.component == "unet" else models.text_encoder
        target = model.get_submodule(entry.path).weight
        target += weight * factor.delta().view_as(target)


def deltas(file: Path) -> Mapping[str, torch.Tensor]:
    """ΔW of each module."""
    return {name: factor.delta() for name, factor in read_adapter(file).factors.items()}


def delta_cosine(one: Path, other: Path) -> float:
    """Cosine of two adapters' updates, all modules as one vector."""
    import torch

    first, second = deltas(one), deltas(other)
    a = torch.cat([first[name].flatten() for name in sorted(first)])
    b = torch.cat([second[name].flatten() for name in sorted(first)])
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


def prompts(count: int) -> list[str]:
    """Captions of scenes, every thing in turn."""
    rng = random.Random("prompts")
    return [draw_scene(rng, THINGS[number % len(THINGS)]).caption for number in range(count)]


def draw_images(
    generator: MultiLoRAGenerator, captions: Sequence[str], count: int, mix: Any = (), *, seed: int = 1
) -> list[Image]:
    """`count` images of each caption, in the captions' order."""
    return draw_mixes(generator, {"": (captions, mix)}, count, seed=seed)[""]


def draw_mixes(
    generator: MultiLoRAGenerator, wanted: Mapping[str, tuple[Sequence[str], Any]], count: int = 1, *, seed: int = 1
) -> dict[str, list[Image]]:
    """Several mixes, each with captions of its own, in one go: name → images, the same seeds in all. Twelve steps are
    enough for what is drawn here.
    """
    from brushset.generator import ImageJob, Sampling

    jobs = [
        (name, ImageJob(caption, seed + number, mix))
        for name, (captions, mix) in wanted.items()
        for caption in captions
        for number in range(count)
    ]
    sampling = Sampling(steps=12, guidance=4.0, width=PX, height=PX, batch_size=32)
    made = dict(generator.generate_jobs([job for _, job in jobs], sampling))
    images: dict[str, list[Image]] = {name: [] for name in wanted}
    for place, (name, _) in enumerate(jobs):
        images[name].append(made[place])
    return images


def amount_of(style: str, images: Sequence[Image]) -> float:
    """How much of a style small_world.eyes sees in images, on average: about 0 in plain ones, 1 in the style's own."""
    return float(look(images).looks[:, LOOKS.index(style)].mean())


def draw_grid(generator: MultiLoRAGenerator, captions: Sequence[str], count: int, mix: Any = ()) -> Image:
    """A row of images a caption, twice as large, with the caption above."""
    from PIL import Image, ImageDraw

    images, edge = draw_images(generator, captions, count, mix), 2 * PX
    grid = Image.new("RGB", (edge * count, (edge + 14) * len(captions)), "white")
    brush = ImageDraw.Draw(grid)
    for place, image in enumerate(images):
        row, column = divmod(place, count)
        grid.paste(image.resize((edge, edge)), (column * edge, row * (edge + 14) + 14))
        brush.text((2, row * (edge + 14)), captions[row], fill="black")
    return grid
