"""Chosen on one half of the prompts, reported on the other: the best of many is lucky on those that it was chosen by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eval.choose.plan import halves

LEAST_A_HALF = 4
"""Of fewer prompts an interval says next to nothing."""


def prompt_halves(prompts: np.ndarray) -> tuple[Sequence[int], Sequence[int]]:
    """Numbers of the prompts to choose by, and to report on, as checkpoints are chosen. All to choose by and none to report
    on where a half would hold fewer than 4.
    """
    numbers = [int(number) for number in np.unique(prompts)]
    if len(numbers) < 2 * LEAST_A_HALF:
        return numbers, ()
    chosen_on, reported_on = halves(len(numbers))
    return [numbers[at] for at in chosen_on], [numbers[at] for at in reported_on]
