"""The report's pictures of a training: what the trainer made of the style's prompts, epoch by epoch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from brushset.page.pictures import spread, thumbnail
from brushset.records import Trained

EPOCHS = 8
PROMPTS = 4


@dataclass(frozen=True)
class SampledEpoch:
    """One epoch's images, by prompt; an image that is gone is an empty string."""

    epoch: int
    uris: tuple[str, ...]


@dataclass(frozen=True)
class TrainingSamples:
    """Rows of epochs, columns of prompts."""

    prompts: tuple[str, ...]
    epochs: tuple[SampledEpoch, ...]


def training_samples(trained: Trained, root: Path) -> TrainingSamples:
    """Some eight of the sampled epochs, evenly, the last among them; the first four prompts of each."""
    prompts = tuple(dict.fromkeys(sample.prompt for sample in trained.samples))[:PROMPTS]
    paths = {(sample.epoch, sample.prompt): root / sample.path for sample in trained.samples}
    epochs = sorted({sample.epoch for sample in trained.samples}, reverse=True)
    rows = [
        SampledEpoch(
            epoch, tuple(thumbnail(paths[epoch, prompt]) if (epoch, prompt) in paths else "" for prompt in prompts)
        )
        for epoch in sorted(spread(epochs, EPOCHS))
    ]
    return TrainingSamples(prompts, tuple(rows))
