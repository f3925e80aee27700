"""BLIP (Li et al., arXiv 2201.12086): one plain sentence an image, by beam-less generation in batches.

Weights are `[caption] model`, an HF id or a folder, from safetensors only. bf16 on a GPU, fp32 on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from brushset.errors import EnvironmentProblem
from brushset.hub import NotToBeHad, fetch_repository
from brushset.protocols import Emit
from brushset.spec import CaptionSection

if TYPE_CHECKING:
    from transformers import BlipForConditionalGeneration, BlipProcessor


_FILES = ("*.json", "*.txt", "model.safetensors")


class BlipCaptioner:
    """Loads the model when it is first asked for a caption."""

    name = "blip"

    def __init__(self, section: CaptionSection) -> None:
        self._section = section
        self.settings = f"{section.model}, {section.max_new_tokens} tokens"

    def describe(self, images: Sequence[Path], emit: Emit) -> list[str]:
        """One sentence an image.

        Raises:
            EnvironmentProblem: the model is not in the cache and cannot be fetched, or is no BLIP.
        """
        import torch

        if not images:
            return []
        processor, model = _load(self._section.model)
        captions: list[str] = []
        for start in range(0, len(images), self._section.batch_size):
            batch = [read_pixels(path) for path in images[start : start + self._section.batch_size]]
            inputs = processor(images=batch, return_tensors="pt").to(model.device, model.dtype)
            with torch.inference_mode():
                tokens = model.generate(**inputs, max_new_tokens=self._section.max_new_tokens)
            captions += [text.strip() for text in processor.batch_decode(tokens, skip_special_tokens=True)]
            emit("progress", what="images captioned", done=len(captions), total=len(images))
        return captions


def _load(name: str) -> tuple[BlipProcessor, BlipForConditionalGeneration]:
    import torch
    from transformers import BlipForConditionalGeneration, BlipProcessor

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    try:
        folder = name if Path(name).is_dir() else fetch_repository(name, _FILES)
        processor = BlipProcessor.from_pretrained(folder, use_fast=True)
        model = BlipForConditionalGeneration.from_pretrained(folder, dtype=dtype, use_safetensors=True)
    except (NotToBeHad, OSError, ValueError, RuntimeError, ImportError) as error:
        raise EnvironmentProblem(
            f'[caption] model = "{name}": no folder with a BLIP in safetensors, not in the cache of HF models, and not '
            f"to be fetched now; fix: connect to huggingface.co once, or --set caption.model=FOLDER, or "
            f"--set caption.captioner=trigger-only",
            detail=str(error),
        ) from error
    return processor, model.to(device).eval()


def read_pixels(path: Path) -> Image.Image:
    """A prepared image, decoded."""
    with Image.open(path) as image:
        return image.convert("RGB")
