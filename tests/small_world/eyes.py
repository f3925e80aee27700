"""The small world's judge: a small network that has learnt to see what is drawn there, and how.

For the small world's pictures what CLIP, CSD and DINOv2 are for photographs and paintings, which they know and it does
not: an extractor whose numbers mean something there. From means and deviations of its first layers, which hold no place,
it reads how much of each look is in a picture; from its last layer what the caption says. It is taught on pictures drawn
by program, half of them seen through the VAE, as generated ones are; it has never seen a picture that a LoRA made.
Looks are taught in degrees, and some two at a time: half a style is to be half as much, and two are to be seen beside
one another. Kept as eyes.safetensors; scripts/make_small_world.py --eyes makes it in some minutes.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from small_world.draw import COLOURS, PLACES, PX, SIZES, THINGS, Scene, draw_scene
from small_world.styles import BASE_LOOKS, STYLES, frame, grade, plain

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

WEIGHTS = Path(__file__).with_name("eyes.safetensors")
LOOKS = ("plain", *filter(None, BASE_LOOKS), *STYLES)
GROUPS: dict[str, tuple[str, ...]] = {
    "thing": THINGS, "colour": tuple(COLOURS), "ground": tuple(COLOURS), "place": tuple(PLACES), "size": tuple(SIZES),
}  # fmt: skip
"""What a caption says, in the order of the network's answers."""
PICTURES, STEPS, BATCH, RATE = 12_000, 4000, 64, 3e-3
_WIDTHS = (16, 24, 32, 48)


@dataclass(frozen=True)
class View:
    """What is seen in N pictures: `looks` [N, looks], how much of each; `says` group → [N, its words], probabilities;
    `layers` the feature maps.
    """

    looks: torch.Tensor
    says: dict[str, torch.Tensor]
    layers: tuple[torch.Tensor, ...]


def make_eyes() -> Any:
    """The network, untaught."""
    import torch
    from torch import nn

    class Eyes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            widths = (3, *_WIDTHS)
            self.layers = nn.ModuleList(
                nn.Conv2d(before, after, 5 if before == 3 else 3, 2, padding=1)
                for before, after in itertools.pairwise(widths)
            )
            self.looks = nn.Sequential(nn.Linear(2 * sum(_WIDTHS[:3]) + 6, 64), nn.ReLU(), nn.Linear(64, len(LOOKS)))
            self.says = nn.Sequential(
                nn.Linear(_WIDTHS[-1] * 16, 96), nn.ReLU(), nn.Linear(96, sum(map(len, GROUPS.values())))
            )

        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
            maps, seen = [], pixels
            for layer in self.layers:
                seen = torch.relu(layer(seen))
                maps.append(seen)
            without_place = [part for each in (pixels, *maps[:3]) for part in (each.mean((2, 3)), each.std((2, 3)))]
            return self.looks(torch.cat(without_place, 1)), self.says(seen.flatten(1)), maps

    return Eyes()


@lru_cache(maxsize=1)
def load_eyes() -> Any:
    """The taught network."""
    from brushset.bases.tensors import load_tensors

    eyes = make_eyes()
    eyes.load_state_dict({name: weight.float() for name, weight in load_tensors(WEIGHTS).items()})
    return eyes.eval().requires_grad_(False)


def look(images: Sequence[Image]) -> View:
    """What the taught network sees; pictures of another size are resized."""
    import torch

    with torch.inference_mode():
        looks, says, maps = load_eyes()(to_pixels(images))
    parts = says.split([len(words) for words in GROUPS.values()], 1)
    return View(looks, {name: part.softmax(1) for name, part in zip(GROUPS, parts, strict=True)}, tuple(maps))


def to_pixels(images: Sequence[Image]) -> torch.Tensor:
    """float32 [N, 3, PX, PX] from -1 to 1."""
    import numpy as np
    import torch

    arrays = [np.asarray(image.convert("RGB").resize((PX, PX)), np.float32) for image in images]
    return torch.from_numpy(np.stack(arrays) / 127.5 - 1).permute(0, 3, 1, 2).contiguous()


def read_caption(text: str) -> dict[str, int | None]:
    """Group → number of the word that the caption says; None where it says nothing."""
    colours, things = "|".join(COLOURS), "|".join(THINGS)
    found: dict[str, int | None] = dict.fromkeys(GROUPS)
    if thing := re.search(rf"\b(small )?({colours}) ({things})\b( on the left| on the right)?", text):
        size, colour, name, place = thing.groups(default="")
        for group, word in (("size", size), ("colour", colour), ("thing", name), ("place", place)):
            found[group] = GROUPS[group].index(word)
    if ground := re.search(rf"on an? ({colours}) background", text):
        found["ground"] = GROUPS["ground"].index(ground.group(1))
    return found


def teach(vae: Any, seed: int) -> Iterator[tuple[int, float, Any]]:
    """Yields (step, loss, the network)."""
    import torch

    torch.manual_seed(seed)
    pixels, looks, words = _draw_lessons(vae, seed)
    eyes = make_eyes()
    optimizer = torch.optim.AdamW(eyes.parameters(), lr=RATE, weight_decay=1e-3)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS, pct_start=0.1)
    for step in range(1, STEPS + 1):
        chosen = torch.randint(0, len(pixels), (BATCH,))
        shown = pixels[chosen].float() / 127.5 - 1
        shown = shown + torch.randn_like(shown) * 0.08 * torch.rand(BATCH, 1, 1, 1)
        seen, says, _ = eyes(shown)
        answers = says.split([len(each) for each in GROUPS.values()], 1)
        errors = [
            torch.nn.functional.cross_entropy(answer, words[chosen, group]) for group, answer in enumerate(answers)
        ]
        loss = torch.stack(errors).mean() + 10 * (seen - looks[chosen]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
        yield step, float(loss.item()), eyes


def _draw_lessons(vae: Any, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """uint8 [N, 3, PX, PX], how much of each look [N, looks], the caption's words [N, groups]. The first half is seen
    through the VAE.
    """
    import torch

    rng = random.Random(f"eyes/{seed}")
    pixels, looks, words = [], [], []
    for _ in range(PICTURES):
        scene = draw_scene(rng)
        image, amounts = _draw_in_looks(scene, rng)
        pixels.append((to_pixels([image])[0] * 127.5 + 127.5).round().byte())
        looks.append([amounts.get(name, 0.0) for name in LOOKS])
        said = {"thing": scene.thing, "colour": scene.colour, "ground": scene.ground}
        said |= {"place": scene.place, "size": scene.size}
        words.append([GROUPS[group].index(said[group]) for group in GROUPS])
    stacked = torch.stack(pixels)
    half = PICTURES // 2
    with torch.no_grad():
        for part in stacked[:half].split(32):
            seen = vae.decode(vae.encode(part.float() / 127.5 - 1).latent_dist.mean).sample
            part.copy_((seen.clamp(-1, 1) * 127.5 + 127.5).round().byte())
    return stacked, torch.tensor(looks), torch.tensor(words)


def _draw_in_looks(scene: Scene, rng: random.Random) -> tuple[Image, dict[str, float]]:
    """A look, in full or in part; sometimes dusk, snow or the frame over it."""
    from PIL import Image

    name = rng.choice(LOOKS)
    whole = STYLES.get(name) or BASE_LOOKS.get(name, plain)
    share = 1.0 if rng.random() < 0.6 else rng.random()
    amounts = {"plain": 1 - share, name: share} if name != "plain" else {"plain": 1.0}
    image = Image.blend(plain(scene), whole(scene), share)
    if name not in {"dusk", "snow", "framed"} and rng.random() < 0.4:
        over = rng.choice(("dusk", "snow", "framed"))
        strength = 1.0 if over == "framed" else rng.uniform(0.3, 1)
        image = frame(image) if over == "framed" else grade(image, over, strength)
        amounts["plain"] = amounts.get("plain", 0.0) * (1 - strength)
        amounts[over] = strength
    return image, amounts
