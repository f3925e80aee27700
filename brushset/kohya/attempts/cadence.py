"""How often does sd-scripts save a state, so that a kill costs no more than was asked for?

It saves one together with each checkpoint, every so many epochs and every so many steps, fixed when it starts. So the
minutes are turned into steps by the rate that this machine had before, or by a slow guess: too often costs little (227 MB
and some tenths of a second at rank 32). With gradient accumulation there are only states of whole epochs: it cannot
resume inside one. Where the whole training is shorter than that, no state is worth its disk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from brushset.kohya.plan import Plan
from brushset.spec import TrainSection

# Seconds a batch on a machine of which nothing is known: slower than most.
GUESSED_GPU_S, GUESSED_CPU_S = 2.0, 30.0
_TOO_OFTEN = 8


@dataclass(frozen=True)
class Cadence:
    """When sd-scripts shall save: each `epochs`, and each `steps` where that is not None; a state with each where
    `states`. `steps` are counted from the beginning of the epoch in which the trainer starts.
    """

    epochs: int
    steps: int | None = None
    states: bool = False


def choose_cadence(train: TrainSection, plan: Plan, *, from_step: int, seconds_per_step: float) -> Cadence:
    """The intervals for an attempt that starts after `from_step`."""
    epochs = train.save_every_n_epochs
    if train.early_stop_patience:
        epochs = math.gcd(epochs, train.validate_every_n_epochs)
    base_step = from_step // plan.steps_per_epoch * plan.steps_per_epoch
    # A resumed sd-scripts runs on to the end of the last epoch: a file at the true last step is saved, and it is stopped.
    last_step = plan.steps - base_step if from_step and plan.ends_inside_an_epoch else None
    wanted = train.save_state_minutes * 60 / seconds_per_step
    if not train.save_state_minutes or wanted >= plan.steps - from_step:
        return Cadence(epochs, last_step)
    if wanted >= plan.steps_per_epoch:
        return Cadence(_largest_divisor(epochs, int(wanted // plan.steps_per_epoch)), last_step, states=True)
    if plan.gradient_accumulation_steps > 1:
        return Cadence(1, last_step, states=True)
    steps = max(1, int(wanted))
    if last_step is not None:
        divisor = _largest_divisor(last_step, steps)
        steps = divisor if divisor * _TOO_OFTEN >= steps else last_step
    return Cadence(1 if steps == last_step else epochs, steps, states=True)


def guess_seconds_per_step(plan: Plan, *, cuda: bool) -> float:
    """An optimizer step's time where nothing is known."""
    return (GUESSED_GPU_S if cuda else GUESSED_CPU_S) * plan.gradient_accumulation_steps


def _largest_divisor(number: int, at_most: int) -> int:
    return max(divisor for divisor in range(1, max(1, min(number, at_most)) + 1) if number % divisor == 0)
