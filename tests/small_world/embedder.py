"""The extractors of `evaluate` for the small world: what eval.look.load_extractors gives, made of small_world.eyes.

    csd        how much of each look is in the picture, and nothing of its content
    clip       what is drawn: thing, colour, ground, place, size, as probabilities; of a text, what it says
    dinov2     the picture itself in 8 × 8 cells, less what all pictures have in common, and its looks
    inception  the network's last layer, averaged; not of unit length
    lpips      LPIPS' formula (arXiv 1801.03924) on the network's layers, all channels weighing alike
    dhash      as it is

They are `meaningful` in the small world, where the network was taught, and nowhere else. tests/test_small_world_eyes.py
says how well they see.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from eval.embedder import Embedder, Identity, Towers
from eval.look import Extractor
from eval.lpips import Distance, PairDistances
from eval.metric import ExtractorName
from eval.networks import load_dhash
from small_world.eyes import GROUPS, WEIGHTS, load_eyes, look, read_caption, to_pixels
from small_world.styles import STYLES, make_style

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

_NOTE = "the small world's own, taught on its pictures; it means something there alone"
_CELLS = 8
_CONSTANT = 0.1  # what all pictures and texts share, so that none is without length


def small_extractors(*_: object) -> dict[ExtractorName, Extractor]:
    """In the place of `eval.look.load_extractors`, whose argument is taken and not read."""
    return {
        "clip": _embedder("clip", _say, texts=True),
        "csd": _embedder("csd", lambda images: look(images).looks.numpy()),
        "dinov2": _embedder("dinov2", _picture),
        "inception": _embedder("inception", lambda images: look(images).layers[-1].mean((2, 3)).numpy(), unit=False),
        "lpips": PairDistances(_identity("lpips"), _load_distance),
        "dhash": load_dhash(),
    }


def _identity(what: str) -> Identity:
    sha256 = hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
    return Identity(
        f"small world's {what} (weights {sha256[:12]}; {_CELLS} cells)", sha256, meaningful=True, note=_NOTE
    )


def _embedder(what: str, images: object, *, unit: bool = True, texts: bool = False) -> Embedder:
    towers = Towers(images, _read if texts else None)  # type: ignore[arg-type]
    return Embedder(_identity(what), lambda: towers, unit=unit, batch_size=64)


def _say(images: Sequence[Image]) -> np.ndarray:
    """Probabilities less chance, so that to know nothing is to say nothing."""
    says = look(images).says
    return _with_constant([says[name].numpy() - 1 / len(words) for name, words in GROUPS.items()])


def _read(texts: Sequence[str]) -> np.ndarray:
    """What a text says, in the same places; zeros where it says nothing."""
    said = [read_caption(text) for text in texts]
    parts = []
    for name, words in GROUPS.items():
        rows = np.zeros((len(texts), len(words)))
        for place, each in enumerate(said):
            if (number := each[name]) is not None:
                rows[place] -= 1 / len(words)
                rows[place, number] += 1
        parts.append(rows)
    return _with_constant(parts)


def _with_constant(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([*parts, np.full((len(parts[0]), 1), _CONSTANT)], axis=1)


def _picture(images: Sequence[Image]) -> np.ndarray:
    mean, deviation = _usual_cells()
    cells = (_cells(to_pixels(images)) - mean) / deviation
    return np.concatenate([cells / np.sqrt(cells.shape[1]), 0.3 * look(images).looks.numpy()], axis=1)


@lru_cache(maxsize=1)
def _usual_cells() -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each cell over pictures of all styles."""
    pictures = [each.image for name in ("plain", *STYLES) for each in make_style(name, 64, 1_000_000)]
    cells = _cells(to_pixels(pictures))
    return cells.mean(axis=0), cells.std(axis=0)


def _cells(pixels: torch.Tensor) -> np.ndarray:
    import torch

    return torch.nn.functional.adaptive_avg_pool2d(pixels, _CELLS).flatten(1).numpy()


def _load_distance() -> Distance:
    import torch

    def distance(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        sides = []
        for pixels in (first, second):
            fitted = torch.nn.functional.interpolate(pixels, (64, 64), mode="bilinear", antialias=True)
            sides.append([torch.nn.functional.normalize(layer, dim=1) for layer in load_eyes()(fitted)[2]])
        each = [(one - other).square().sum(1).mean((1, 2)) for one, other in zip(*sides, strict=True)]
        return torch.stack(each).sum(0)

    return distance
