"""CLIP score: how well an image shows what the prompt says.

    CLIPScore = max(100 · mean over images of cos(E_image, E_text), 0)

Source: Hessel et al. 2021 (arXiv 2104.08718) in torchmetrics' scale (Apache-2.0): 100 · cosine, clamped after the
mean. Higher is better, as a difference to the base at the same prompts and seeds; its level depends on the prompts
and on the CLIP more than on any adapter. Least sensible n: some 50 prompts. It does not measure style, nor quality:
over 120 rated composites its correlation with people's judgement of composition was -0.006 (Multi-LoRA-Composition's
human_eval/results.json, recomputed).

The text is the prompt without trigger and style words: a trigger would move the text, not the image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from brushset.protocols import GridImages
from eval.features import ClipEncoder
from eval.metric import Measurement, NotMeasured

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


def measure_clip_score(grid: GridImages, clip: ClipEncoder) -> Measurement:
    """The score of a cell, 0 to 100.

    Raises:
        NotMeasured: there are no images.
    """
    import torch
    from torchmetrics.multimodal.clip_score import CLIPScore

    if not grid.images:
        raise NotMeasured("no images")
    metric = CLIPScore(lambda: (clip.model, clip.inputs)).to(clip.device)
    with torch.inference_mode():
        for start in range(0, len(grid.images), clip.batch_size):
            batch = slice(start, start + clip.batch_size)
            images = [_to_uint8_chw(image).to(clip.device) for image in grid.images[batch]]
            metric.update(images, list(grid.prompts[batch]))
    return Measurement(float(metric.compute()), len(grid.images), "text: the prompt without trigger")


def _to_uint8_chw(image: Image) -> torch.Tensor:
    """uint8 [3, H, W]: floats in [0, 1] would be divided by 255 a second time, without a word."""
    import numpy as np
    import torch

    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()
