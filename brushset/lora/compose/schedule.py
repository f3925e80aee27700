"""Weights over the steps: W + Σ wᵢ(p)ΔWᵢ, where p goes from 0 at the first step to 1 at the last.

Early steps settle structure, late ones texture (the rationale of K-LoRA's time scale, arXiv 2502.18461); Switch is the
schedule of turns. One UNet pass a step.

Step t of n has p = t/(n − 1): a ramp reaches both of its ends, a part of n steps has its share of them exactly where
that is a whole number, and on Karras' and on linear spacing p belongs to the same noise whatever n, so that more steps
go to a limit. Where a weight jumps a multistep solver begins anew (View.restart) and stays of second order: on
Gaussians, where the limit is known, one jump half-way leaves DPM++ 2M at 25 steps an error of 0.001 so, of 0.06
without, and DDIM one of 0.08 (the models of tests/test_compose.py). Where it ramps nothing is needed.
"""

from __future__ import annotations

import math

from brushset.lora.compose.method import Options, scaled
from brushset.lora.compose.progress import Schedule
from brushset.lora.compose.view import Course, Mix, View


def schedule(mix: Mix, options: Options) -> Course:
    """Each adapter by its schedule; one that has none at the mix's weight throughout."""
    schedules = [(name, options.schedules.get(name, Schedule.always(weight))) for name, weight in mix]

    def course(step: int, steps: int) -> tuple[View, ...]:
        before, now = progress(step - 1, steps), progress(step, steps)
        weights = [(name, each.at(now)) for name, each in schedules]
        active = [(name, weight) for name, weight in weights if not weight.nothing]
        to_one = options.normalised and math.fsum(weight.whole for _, weight in active) != 0
        restart = step > 0 and any(each.jumps(before, now) for _, each in schedules)
        return (View(scaled(active, to_one=to_one), restart=restart),)

    return course


def progress(step: int, steps: int) -> float:
    """0 at the first step, 1 at the last."""
    return step / (steps - 1) if steps > 1 else 0.0
