"""How well is the noise of images predicted that are not trained on, and of as many that are?

As sd-scripts validates (train_network.py at v0.10.1): the training's own loss, min-SNR weights included, at four timesteps
evenly apart, 200 to 800, image by image. Unlike there, an image's noise depends on seed, image and timestep alone, so that
one epoch's figure differs from another's by the weights and nothing else. The same is measured on as many images of the
training set, chosen once: the gap between both is what was learned by heart. No random number of the training is used up.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from brushset.native.dataset import derive_seed
from brushset.native.heldout import Heldout
from brushset.native.noise import draw_noise

if TYPE_CHECKING:
    from brushset.native.session import Session
    from brushset.native.settings import NativeSettings

_TIMESTEPS = 4
_AT_ONCE = 8
"""Samples in one pass: twice as many as in most batches, and without gradients they take less memory."""


@dataclass(frozen=True)
class Measured:
    """The mean loss of the held-out images, and of as many that are trained on."""

    heldout: float
    trained: float


def measure(session: Session, heldout: Heldout) -> Measured:
    """Both losses with the weights as they are. This waits for the device."""
    limit, seed = session.settings.training.max_validation_steps, session.settings.training.seed
    chosen = list(range(len(heldout.images.images)))[:limit]
    own = range(len(session.images.images))
    alike = sorted(random.Random(derive_seed(seed, "measured")).sample(own, min(len(chosen), len(own))))
    trained = Heldout(session.images, session.latents, session.settings.dataset)
    return Measured(_mean_loss(session, heldout, chosen), _mean_loss(session, trained, alike))


def measured_timesteps(settings: NativeSettings) -> list[int]:
    """Four, evenly apart between the first and the last that is trained."""
    first, end = settings.training.timesteps
    return [int(first + (end - first) * part / (_TIMESTEPS + 1)) for part in range(1, _TIMESTEPS + 1)]


def _mean_loss(session: Session, of: Heldout, chosen: Sequence[int]) -> float:
    total, count = 0.0, 0
    for samples in _alike(of, [(image, step) for image in chosen for step in measured_timesteps(session.settings)]):
        total += sum(_losses(session, of, samples))
        count += len(samples)
    return total / count


def _alike(of: Heldout, samples: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Samples of one bucket, some at once."""
    for bucket in of.images.plan.counts:
        members = set(of.images.members(bucket))
        here = [sample for sample in samples if sample[0] in members]
        for start in range(0, len(here), _AT_ONCE):
            yield here[start : start + _AT_ONCE]


def _losses(session: Session, of: Heldout, samples: Sequence[tuple[int, int]]) -> list[float]:
    """The loss of each sample, an image at a timestep."""
    pack, timesteps = session.pack, torch.tensor([step for _, step in samples])
    latents = torch.stack([_latents(of, image) for image, _ in samples])
    drawn = [_noise(session, image, step, latents.shape[1:]) for image, step in samples]
    given = {
        "noise": torch.cat([noise for noise, _ in drawn]),
        "added": torch.cat([added for _, added in drawn]),
        "timesteps": timesteps,
        "weights": session.weights.index_select(0, timesteps),
        **session.text.join([session.text.prepare([of.caption(image) for image, _ in samples], session.clip_skip)]),
    }
    if session.thresholds is not None:
        given["thresholds"] = session.thresholds.index_select(0, timesteps)
    pack.route([session.row])
    with torch.no_grad():
        sent = {name: pack.send(tensor) for name, tensor in given.items()}
        losses = pack.losses(latents.to(pack.device, pack.flat.master.dtype), sent, parts=len(samples))
    found: list[float] = losses.tolist()
    return found


def _latents(of: Heldout, image: int) -> torch.Tensor:
    """An image's latents as they lie, its posterior's mean where samples are drawn from that."""
    bucket = of.images.plan.assignment[of.images.images[image].path.name]
    return of.latents.mean[bucket][of.latents.rows[image], 0]


def _noise(session: Session, image: int, timestep: int, shape: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The noise to predict and the one that is added, [1, 4, h, w], of the recipe's kind."""
    training = session.settings.training
    seed = training.seed if training.validation_seed is None else training.validation_seed
    generator = torch.Generator().manual_seed(derive_seed(seed, f"validation {timestep}", image))
    drawn = draw_noise((1, *shape), generator, training)
    return drawn.noise, drawn.noise if drawn.added is None else drawn.added
