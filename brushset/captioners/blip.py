"""BLIP (Li et al., arXiv 2201.12086): one plain sentence an image, by beam-less generation in batches.

Weights are `[caption] model`, an HF id or a folder, from safetensors only. bf16 on a GPU, fp32 on a CPU.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from brushset.captioners.weights import Weights
from brushset.errors import EnvironmentProblem
from brushset.hub import NotToBeHad
from brushset.images import run_threads
from brushset.protocols import Describe, Emit, Subject
from brushset.spec import CaptionSection

if TYPE_CHECKING:
    from transformers import BlipForConditionalGeneration, BlipProcessor

_FILES = ("*.json", "*.txt", "model.safetensors")
# The large model's habit: a word that is none, before a noun ("arafed man with a hat").
_NO_WORD = re.compile(r"\baraf+ed\s+", re.IGNORECASE)


class BlipCaptioner:
    """Loads the model when it is first asked for a caption."""

    name = "blip"

    def __init__(self, section: CaptionSection) -> None:
        self._section = section
        self._weights = blip_weights(section)
        self.settings = f"{section.model}, {section.max_new_tokens} tokens"
        self.batch_size = section.batch_size

    def weights(self) -> str:
        """Model and commit, or the digest of a folder's files."""
        try:
            return self._weights.identity()
        except NotToBeHad as error:
            raise _not_to_be_had(self._section.model, error) from error

    def load(self, emit: Emit) -> Describe:  # noqa: ARG002 - the protocol's
        """One sentence an image.

        Raises:
            EnvironmentProblem: the model is not in the cache and cannot be fetched, or is no BLIP.
        """
        import torch

        processor, model = _load(self._section.model, self._weights)

        def describe(subjects: Sequence[Subject]) -> list[str]:
            batch = read_images(subjects)
            inputs = processor(images=batch, return_tensors="pt").to(model.device, model.dtype)
            with torch.inference_mode():
                tokens = model.generate(**inputs, max_new_tokens=self._section.max_new_tokens)
            texts = processor.batch_decode(tokens, skip_special_tokens=True)
            return [_NO_WORD.sub("", text).strip() for text in texts]

        return describe


def blip_weights(section: CaptionSection) -> Weights:
    """What is read of the model that a style names."""
    return Weights(section.model, section.revision, _FILES, ("*.safetensors", "*.json", "*.txt"))


def read_images(subjects: Sequence[Subject]) -> list[Image.Image]:
    """The prepared images, decoded."""
    return run_threads(_read_pixels, [subject.image for subject in subjects])


def _read_pixels(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _load(name: str, weights: Weights) -> tuple[BlipProcessor, BlipForConditionalGeneration]:
    import torch
    from transformers import BlipForConditionalGeneration, BlipProcessor

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    try:
        folder = weights.folder()
        processor = BlipProcessor.from_pretrained(folder, use_fast=True)
        model = BlipForConditionalGeneration.from_pretrained(folder, dtype=dtype, use_safetensors=True)
    except (NotToBeHad, OSError, ValueError, RuntimeError, ImportError) as error:
        raise _not_to_be_had(name, error) from error
    return processor, model.to(device).eval()


def _not_to_be_had(name: str, error: Exception) -> EnvironmentProblem:
    return EnvironmentProblem(
        f'[caption] model = "{name}": no folder with a BLIP in safetensors, not in the cache of HF models, and not '
        f"to be fetched now; fix: connect to huggingface.co once, or --set caption.model=FOLDER, or "
        f"--set caption.captioner=trigger-only",
        detail=str(error),
    )
