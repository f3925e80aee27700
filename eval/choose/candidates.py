"""Which checkpoints at which weights are candidates, which of them are tried first, and which are not tried at all.

Many epochs are thinned evenly, and the neighbours of the best come in later: retention changes smoothly with the epoch. An
epoch whose held-out loss is a tenth above the lowest is left out: a style moves that loss by a few hundredths, so that it
has unlearned more than there was to learn.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from brushset.chosen import KeptFile, kept_files
from brushset.records import EpochLoss, Trained
from brushset.spec import EvaluateSection


@dataclass(frozen=True, order=True)
class Way:
    """One checkpoint at one weight; the order is that of ties: the earlier epoch first, then the lower weight."""

    epoch: int
    weight: float

    def __str__(self) -> str:
        return f"epoch {self.epoch} at {self.weight:g}"


@dataclass(frozen=True)
class Lineup:
    """What may be chosen from: every epoch of `epochs` at every weight. `files` are all that were kept."""

    files: Mapping[int, KeptFile]
    epochs: tuple[int, ...]
    weights: tuple[float, ...]
    losses: tuple[EpochLoss, ...]
    notes: tuple[str, ...]

    def first(self, checkpoints: int) -> list[Way]:
        """Who is in the first round, of which so many checkpoints are."""
        return [Way(epoch, weight) for epoch in thinned(self.epochs, checkpoints) for weight in self.weights]

    def neighbours(self, ways: Sequence[Way], tried: Collection[Way]) -> list[Way]:
        """The epoch before each of these and the one after, at its weight, where they were not tried."""
        found = []
        for way in ways:
            at = self.epochs.index(way.epoch)
            beside = self.epochs[max(at - 1, 0) : at] + self.epochs[at + 1 : at + 2]
            found += [Way(epoch, way.weight) for epoch in beside]
        return [way for way in dict.fromkeys(found) if way not in tried]


def find_lineup(trained: Trained, settings: EvaluateSection) -> Lineup:
    """All kept checkpoints at all weights of [evaluate], but for epochs whose held-out loss is far above the lowest."""
    files, losses, notes = kept_files(trained), epoch_losses(trained), []
    diverged = far_worse(losses, settings.choose_loss_margin)
    epochs = [epoch for epoch in files if epoch not in diverged] or list(files)
    if len(epochs) < len(files):
        left_out = listed([epoch for epoch in files if epoch in diverged])
        notes.append(
            f"not tried: {left_out}, since the loss on held-out images is more than "
            f"{settings.choose_loss_margin:.0%} above the lowest"
        )
    weights = sorted({settings.weight, *settings.weights})
    return Lineup(files, tuple(epochs), tuple(weights), losses, tuple(notes))


def epoch_losses(trained: Trained) -> tuple[EpochLoss, ...]:
    """What validation said of each epoch."""
    return tuple(
        EpochLoss(epoch=point.epoch, held_out=point.loss, trained=point.train_loss) for point in trained.validation
    )


def far_worse(losses: Sequence[EpochLoss], margin: float) -> set[int]:
    """The epochs whose held-out loss is above the lowest by more than `margin` of it."""
    lowest = min((each.held_out for each in losses), default=0.0)
    return {each.epoch for each in losses if each.held_out > (1 + margin) * lowest}


def lowest_loss(losses: Sequence[EpochLoss], epochs: Collection[int]) -> EpochLoss | None:
    """The best of these epochs, the earliest of equals; None where none was validated."""
    return min((each for each in losses if each.epoch in epochs), key=lambda each: each.held_out, default=None)


def thinned(epochs: Sequence[int], most: int) -> list[int]:
    """At most so many, evenly spread, the last always among them."""
    if len(epochs) <= most:
        return list(epochs)
    return [epochs[(at + 1) * len(epochs) // most - 1] for at in range(most)]


def listed(epochs: Sequence[int]) -> str:
    """`epoch 4`, `epochs 4, 6`, `epochs 13 to 20`."""
    if len(epochs) > 2 and list(epochs) == list(range(epochs[0], epochs[-1] + 1)):
        return f"epochs {epochs[0]} to {epochs[-1]}"
    return f"epoch{'s' * (len(epochs) > 1)} {', '.join(map(str, epochs))}"
