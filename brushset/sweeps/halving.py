"""Asynchronous successive halving (arXiv 1810.05934, algorithm 2): all settings are trained briefly, of each rung the best
1/η are trained η times as long.

Optuna's SuccessiveHalvingPruner and Ray Tune's ASHAScheduler were looked at (5.0.0, 2.60.0). Both know a trial as something
that goes on without a pause: it may go on or stop at the moment it reaches a rung, by those that came before, so that on one
GPU, where runs come one by one, the first always goes on ("Optuna does not support suspending or resuming ongoing trials"),
and a better one that was stopped never does. Both also want the trial within a process of theirs or a study of their own on the disk, where ours are run folders.
The rule itself is ten lines. Each rung is an ordinary run, with a whole schedule of its own length: half of a cosine is no
result, and what is stopped half-way could not be evaluated. So the last rung costs what it always costs, and all those
below, together, at most 1/(η − 1) of what one rung over all settings does.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any, TypeVar

from brushset.spec import TrainSection

T = TypeVar("T", bound=Hashable)
ETA = 3  # the paper's
_FEWEST_EPOCHS = 1


def choose_rungs(train: TrainSection, settings: int, eta: int = ETA) -> int:
    """How many rungs: as many as leave one of all settings at the top and an epoch at the bottom."""
    return 1 + min(int(math.log(settings, eta) + 1e-9), int(math.log(train.epochs, eta) + 1e-9))


def rung_settings(train: TrainSection, rung: int, rungs: int, eta: int = ETA) -> dict[str, Any]:
    """How long a rung trains, as settings; nothing for the last one. Epochs and what rules their repeats are divided
    alike, so that an epoch is the same on every rung.
    """
    share = eta ** (rungs - 1 - rung)
    if share == 1:
        return {}
    found = {"train.epochs": max(_FEWEST_EPOCHS, round(train.epochs / share))}
    if train.repeats is None and train.max_steps is None:
        found["train.target_steps"] = max(1, round(train.target_steps / share))
    if train.max_steps is not None:
        found["train.max_steps"] = max(1, round(train.max_steps / share))
    return found


def choose_promotions(
    scores: Sequence[Mapping[T, float]], started: Sequence[Collection[T]], *, over: bool, eta: int = ETA
) -> list[tuple[T, int]]:
    """Whom to train longer now, and on which rung.

    Args:
        scores: by rung, from the bottom; higher is better. Who has none is not promoted.
        started: by rung, who has been begun there.
        over: nothing runs any more, so that fewer than η are ranked too: the best of a rung goes on.
        eta: one of so many goes on.

    Returns:
        From the highest rung down; empty where all that may be begun has been.
    """
    found: list[tuple[T, int]] = []
    for rung in range(len(scores) - 2, -1, -1):
        ranked = sorted(scores[rung], key=lambda each: -scores[rung][each])
        quota = len(ranked) // eta
        if over and not quota and not started[rung + 1]:
            quota = min(1, len(ranked))
        found += [(each, rung + 1) for each in ranked[:quota] if each not in started[rung + 1]]
    return found
