"""Small networks of seeded random numbers in the places of the real ones: the same code runs, and no number means anything.

For smoke runs and tests. They are made when asked for by name, `random`, and never in the place of weights that are missing.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from eval.embedder import Embedder, Identity, Towers
from eval.lpips import Distance, PairDistances
from eval.networks import clip_towers, dinov2_towers, uint8_towers, vision_towers
from eval.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess

T = TypeVar("T")

MADE_UP = "random"
_SEED = 20_260
_VOCABULARY = 1024
_PX = 32
_TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_VISION = {**_TOWER, "image_size": _PX, "patch_size": 8}
_NOTE = "a real one was not asked for"


def make_clip(device: str) -> Embedder:
    """CLIP's own architecture at 32 pixels and width 32."""

    def load() -> Towers:
        from transformers import CLIPConfig, CLIPModel

        text = _TOWER | {"vocab_size": _VOCABULARY, "bos_token_id": _VOCABULARY - 2, "eos_token_id": _VOCABULARY - 1}
        config = CLIPConfig(text_config=text, vision_config=_VISION, projection_dim=32)
        model = _seeded(lambda: CLIPModel(config)).eval().to(device)
        return clip_towers(model, Preprocess(_PX, _PX), words_as_tokens, device)

    return Embedder(_named("CLIP"), load)


def make_csd(device: str) -> Embedder:
    """Its image tower with a head of its own."""

    def load() -> Towers:
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        config = CLIPVisionConfig(**_VISION, projection_dim=24)
        model = _seeded(lambda: CLIPVisionModelWithProjection(config), 1).eval().to(device)
        return vision_towers(lambda pixels: model(pixel_values=pixels).image_embeds, Preprocess(_PX, _PX), device)

    return Embedder(_named("CSD"), load)


def make_dinov2(device: str) -> Embedder:
    """DINOv2's architecture at 32 pixels and width 32."""

    def load() -> Towers:
        from transformers import Dinov2Config, Dinov2Model

        config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=_PX, patch_size=8)
        model = _seeded(lambda: Dinov2Model(config), 2).eval().to(device)
        return dinov2_towers(model, Preprocess(_PX, _PX, IMAGENET_MEAN, IMAGENET_STD), device)

    return Embedder(_named("DINOv2"), load)


def make_inception(device: str) -> Embedder:
    """Two convolutions on 32 × 32 pixels, averaged: 16 features."""

    def load() -> Towers:
        import torch

        def build() -> Any:
            first, second = torch.nn.Conv2d(3, 12, 3, stride=2), torch.nn.Conv2d(12, 16, 3, stride=2)
            return torch.nn.Sequential(first, torch.nn.GELU(), second).eval()

        layers = _seeded(build).to(device)

        def network(images: torch.Tensor) -> torch.Tensor:
            small = torch.nn.functional.interpolate(images.float(), (_PX, _PX), mode="bilinear", antialias=True)
            return layers(small / 128 - 1).mean(dim=(2, 3))

        return uint8_towers(network, device)

    return Embedder(_named("Inception"), load, unit=False)


def make_lpips(device: str) -> PairDistances:
    """LPIPS' formula on one convolution: squared differences of normalised features, averaged."""

    def load() -> Distance:
        import torch

        layer = _seeded(lambda: torch.nn.Conv2d(3, 8, 5, stride=4).eval(), 3).to(device)

        def distance(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
            one, other = (torch.nn.functional.normalize(layer(pixels), dim=1) for pixels in (first, second))
            return (one - other).square().sum(dim=1).mean(dim=(1, 2))

        return distance

    return PairDistances(_named("LPIPS"), load, device)


def words_as_tokens(texts: Sequence[str]) -> dict[str, Any]:
    """One token a word, by hash, between start and end: a tokenizer without a vocabulary file."""
    import torch

    rows = [[zlib.crc32(word.encode()) % (_VOCABULARY - 2) for word in text.split()[:75]] for text in texts]
    width = max(len(row) for row in rows) + 2
    ids = torch.full((len(rows), width), _VOCABULARY - 1)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row) + 1] = torch.tensor([_VOCABULARY - 2, *row])
        mask[index, : len(row) + 2] = 1
    return {"input_ids": ids, "attention_mask": mask}


def _named(what: str) -> Identity:
    return Identity(f"made-up {what}", "", meaningful=False, note=_NOTE)


def _seeded(build: Callable[[], T], offset: int = 0) -> T:
    """Built from a seed of its own; the random state is left as it was."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(_SEED + offset)
        return build()
