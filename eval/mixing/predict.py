"""How much two styles should get in each other's way, from the files and from a few passes of the UNet: told beside what
was measured, and never decided by.

A pair takes 5 points of the way from noise to an image for each of 2 prompts, 5 rows a point: the passes of one image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brushset.bases.load import load_components
from brushset.lora.adapter import AdapterFile, read_adapter
from brushset.lora.merge.weights import Weight
from brushset.records import BaseFile, Prediction
from brushset.spec import EvaluateSection
from eval.cells import PlannedCell

if TYPE_CHECKING:
    from brushset.generation.additivity import Additivity, AdditivityProbe
    from brushset.protocols import Emit

_PROMPTS = 2


@dataclass(frozen=True)
class Files:
    """The base model, and each style's adapter."""

    base: BaseFile
    adapters: Mapping[str, Path]


def predict_pairs(
    pairs: Sequence[PlannedCell], files: Files, settings: EvaluateSection, emit: Emit
) -> dict[tuple[str, ...], Prediction]:
    """Styles → prediction, at the weights of the cells given. Loads the base model beside the adapters, and lets it go."""
    if not pairs:
        return {}
    from brushset.generation.additivity import AdditivityProbe

    adapters = {style: read_adapter(path) for style, path in files.adapters.items()}
    components = load_components(files.base, **_placed(), parts=("unet", "text_encoder", "tokenizer"))
    probe = AdditivityProbe(components, adapters, files.base.name, emit)
    found = {}
    for done, cell in enumerate(pairs):
        emit("progress", what="predicted conflicts", done=done, total=len(pairs))
        found[tuple(style for style, _ in cell.mix)] = _predict(cell, adapters, probe, settings)
    emit("progress", what="predicted conflicts", done=len(pairs), total=len(pairs))
    return found


def _predict(
    cell: PlannedCell, adapters: Mapping[str, AdapterFile], probe: AdditivityProbe, settings: EvaluateSection
) -> Prediction:  # fmt: skip
    from brushset.generation.additivity import ProbeSettings
    from brushset.lora.conflict import find_conflicts

    (first, own), (second, other) = cell.mix
    weights = find_conflicts({style: adapters[style].factors for style in (first, second)}).pairs[0].whole
    prompts = tuple(cell.prompt(prompt) for prompt in settings.prompts[:_PROMPTS])
    size = min(settings.width, settings.height)
    seed = settings.seeds[0] if settings.seeds else 0
    asked = ProbeSettings(prompts, size, seed)
    effects = probe.compare((first, Weight(own)), (second, Weight(other)), asked)
    return _told(weights.cosine, effects)


def _told(cosine: float, effects: Additivity) -> Prediction:
    if not effects.points:
        return Prediction(weights_cosine=cosine, note="one of the two does nothing to the noise prediction")
    return Prediction(
        weights_cosine=cosine,
        effect_cosine=effects.cosine,
        additivity=effects.additivity if math.isfinite(effects.additivity) else None,
        kept=dict(zip((effects.first, effects.second), effects.kept, strict=True)),
    )


def _placed() -> dict[str, Any]:
    import torch

    cuda = torch.cuda.is_available()
    return {"device": "cuda" if cuda else "cpu", "dtype": torch.float16 if cuda else torch.float32}
