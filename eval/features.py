"""The networks that metrics look through: CLIP and Inception, real where they can be had, else made up.

Made-up encoders are small and seeded; they run the same code and give numbers that mean nothing, and say so. A model
is had from a folder, from the user's caches, or from where it is published; being offline makes it unavailable,
being damaged is an error. Features are kept by the image's bytes: references are embedded once, not once a cell.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from eval.weights import Unavailable, clip_folder, inception_weights

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL.Image import Image

T = TypeVar("T")

MADE_UP = "random"
_SEED = 20_260
_WANTED = "a real one was not asked for"
_VOCABULARY = 1024
_MADE_UP_PX = 32


@dataclass(frozen=True)
class ClipInputs:
    """What CLIP's two towers are fed: the call that torchmetrics makes of a processor, with long texts cut."""

    tokenize: Callable[[list[str]], dict[str, Any]]
    image_processor: Any

    def __call__(
        self, *, text: list[str] | None = None, images: Sequence[Any] | None = None, **_: object
    ) -> dict[str, Any]:
        """Token ids of texts, or pixel values of images."""
        if text is not None:
            return self.tokenize(list(text))
        return dict(self.image_processor(images=images, return_tensors="pt"))


@dataclass(frozen=True)
class ClipEncoder:
    """A CLIP, behind brushset.protocols.Embedder."""

    id: str
    meaningful: bool
    note: str
    model: Any
    inputs: ClipInputs
    device: str
    batch_size: int = 16
    _known: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def encode_images(self, images: Sequence[Image]) -> np.ndarray:
        """float32 [N, D], unit length."""
        import numpy as np
        import torch

        def encode(batch: Sequence[Image]) -> np.ndarray:
            pixels = self.inputs(images=batch)["pixel_values"]
            with torch.inference_mode():
                return _unit_rows(self.model.get_image_features(pixels.to(self.device)))

        rows = _once_each(images, self._known, self.batch_size, encode)
        return np.stack(rows)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [N, D], unit length."""
        import numpy as np
        import torch

        rows = []
        for batch in _batches(list(texts), self.batch_size):
            tokens = self.inputs(text=batch)
            ids, mask = tokens["input_ids"].to(self.device), tokens["attention_mask"].to(self.device)
            with torch.inference_mode():
                rows.append(_unit_rows(self.model.get_text_features(ids, mask)))
        return np.concatenate(rows)


@dataclass(frozen=True)
class InceptionFeatures:
    """FID's network: uint8 [N, 3, H, W] → [N, D]."""

    id: str
    meaningful: bool
    note: str
    network: Any
    device: str
    batch_size: int = 16
    _known: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)

    def features(self, images: Sequence[Image]) -> torch.Tensor:
        """float64 [N, D], on the CPU. Images of one call share one size."""
        import numpy as np
        import torch

        def encode(batch: Sequence[Image]) -> torch.Tensor:
            pixels = np.stack([np.array(image.convert("RGB")) for image in batch])
            with torch.inference_mode():
                found = self.network(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().to(self.device))
            return found.double().cpu()

        return torch.stack(_once_each(images, self._known, self.batch_size, encode))


def load_clip(model: str, *, device: str) -> ClipEncoder:
    """A CLIP by HF id or folder; `random`, and an id that cannot be had, give a made-up one that says so."""
    if model == MADE_UP:
        return _make_up_clip(_WANTED, device)
    try:
        folder, digest = clip_folder(model)
    except Unavailable as error:
        return _make_up_clip(str(error), device)
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizerFast

    tokenizer = CLIPTokenizerFast.from_pretrained(folder, local_files_only=True)

    def tokenize(texts: list[str]) -> dict[str, Any]:
        return dict(tokenizer(texts, padding=True, truncation=True, max_length=77, return_tensors="pt"))

    network = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).float().eval().to(device)
    # The slow processor resizes by PIL; the fast one differs in the last digits.
    inputs = ClipInputs(tokenize, CLIPImageProcessor.from_pretrained(folder, local_files_only=True))
    return ClipEncoder(f"{model} (weights {digest[:12]})", True, "", network, inputs, device)


def load_inception(source: str, *, device: str) -> InceptionFeatures:
    """torch-fidelity's Inception v3 as torchmetrics runs it (2048 features), or a made-up network that says so."""
    if source == MADE_UP:
        return _make_up_inception(_WANTED, device)
    try:
        path, digest = inception_weights(source)
    except Unavailable as error:
        return _make_up_inception(str(error), device)
    from torchmetrics.image.fid import NoTrainInceptionV3

    network = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(path)).eval().to(device)
    return InceptionFeatures(f"inception-v3-compat 2048 (weights {digest[:12]})", True, "", network, device)


def _make_up_clip(note: str, device: str) -> ClipEncoder:
    """CLIP's own architecture at 32 pixels and width 32, with seeded random weights."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = tower | {"vocab_size": _VOCABULARY, "bos_token_id": _VOCABULARY - 2, "eos_token_id": _VOCABULARY - 1}
    vision = tower | {"image_size": _MADE_UP_PX, "patch_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)).eval().to(device)
    processor = CLIPImageProcessor(size={"shortest_edge": _MADE_UP_PX}, crop_size=_MADE_UP_PX)
    return ClipEncoder("made-up CLIP", False, note, model, ClipInputs(_words_as_tokens, processor), device)


def _words_as_tokens(texts: list[str]) -> dict[str, Any]:
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


def _make_up_inception(note: str, device: str) -> InceptionFeatures:
    import torch

    class SmallNetwork(torch.nn.Module):
        """Two seeded convolutions on 32 × 32 pixels, averaged: 16 features."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(
                torch.nn.Conv2d(3, 12, 3, stride=2), torch.nn.GELU(), torch.nn.Conv2d(12, 16, 3, stride=2)
            )

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            small = torch.nn.functional.interpolate(images.float(), (32, 32), mode="bilinear", antialias=True)
            return self.layers(small / 128 - 1).mean(dim=(2, 3))

    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        network = SmallNetwork().eval().to(device)
    return InceptionFeatures("made-up Inception", False, note, network, device)


def _batches(items: list[Any], size: int) -> list[list[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _unit_rows(features: torch.Tensor) -> np.ndarray:
    import numpy as np

    unit = features.float() / features.float().norm(dim=-1, keepdim=True)
    return np.asarray(unit.cpu().numpy(), dtype=np.float32)


def _once_each(
    images: Sequence[Image], known: dict[str, T], batch_size: int, encode: Callable[[Sequence[Image]], Iterable[T]]
) -> list[T]:
    """A row an image, in order; each distinct image goes through `encode` once and is then in `known`."""
    keys = [_image_key(image) for image in images]
    missing = {key: image for key, image in zip(keys, images, strict=True) if key not in known}
    for batch in _batches(list(missing), batch_size):
        known.update(zip(batch, encode([missing[key] for key in batch]), strict=True))
    return [known[key] for key in keys]


def _image_key(image: Image) -> str:
    rgb = image.convert("RGB")
    return hashlib.sha256(repr(rgb.size).encode() + rgb.tobytes()).hexdigest()
