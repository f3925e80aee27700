"""Weighted sum: W + Σ wᵢΔWᵢ, in UNet and text encoder, all the time.

Task arithmetic (Ilharco et al., "Editing Models with Task Arithmetic", arXiv 2212.04089, eq. 1); what every UI does
with several LoRAs. Blocks, UNet and text encoder apart are in the weights. One UNet pass a step, whatever the number.
"""

from __future__ import annotations

from brushset.lora.compose.method import Options, scaled
from brushset.lora.compose.view import Course, Mix, View


def weighted(mix: Mix, options: Options) -> Course:
    """All adapters at their weights, in every step."""
    views = (View(scaled(mix, to_one=options.normalised)),)

    def course(_step: int, _steps: int) -> tuple[View, ...]:
        return views

    return course
