"""The loss gap: how much worse the held-out images' noise is predicted than that of images trained on.

    gap = loss(held out) − loss(as many that were trained on), same timesteps, noise from seed and image alone

The cheapest sign of memorisation, had while training (brushset/native/validation.py), image by image and epoch by epoch.
Around 0 before training, up to the difference of the two sets; rising over the epochs where images are learned by heart.
Lower is better. No interval: the engine records the means alone.
"""

from __future__ import annotations

from brushset.records import Score, Trained
from eval.layout import RUN


def loss_gap_score(trained: Trained, held_out: int) -> Score:
    """The gap at the epoch whose weights these are, or why there is none."""
    points = [point for point in trained.validation if point.train_loss is not None]
    if trained.best_epoch is not None:
        points = [point for point in points if point.epoch == trained.best_epoch]
    value, note = (
        None,
        "not measured: [train] validate_every_n_epochs = 0, or the engine validates on held-out images alone",
    )
    if points and points[-1].train_loss is not None:
        value = points[-1].loss - points[-1].train_loss
        note = f"epoch {points[-1].epoch}: {points[-1].loss:.4f} held out, {points[-1].train_loss:.4f} trained on"
    return Score(
        metric="loss_gap", cell=RUN, value=value, n=held_out, higher_is_better=False,
        extractor="the base model with the adapter, its own loss", meaningful=value is not None and not trained.base_random,
        note=note, interval="none: the engine records means alone",
    )  # fmt: skip
