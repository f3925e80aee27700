"""Minutes granted, how fast images come, and drawing that stops when the minutes are spent.

Where there is a budget, prompts are drawn in slices, each spread evenly over all of them, so that drawing may stop after any
slice: what is left out is left out evenly, and of every candidate alike. Before each slice the speed measured so far says
whether it still fits. Without a budget all are drawn at once, in the fullest batches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

LOOKING = 1.3
"""By which an image takes longer than to sample: encoders look at it, and load. Measured only once it is spent."""
LEAST_PROMPTS = 4
"""Are drawn whatever it takes: of fewer an interval says next to nothing."""
_SLICES = 8  # a slice too many is at most so much of the drawing; more slices leave more batches half full


@dataclass
class Pace:
    """`minutes` None: as long as it takes. `per_image_s`, looked at, is 0 until some images were made."""

    minutes: float | None
    per_image_s: float = 0.0
    notes: list[str] = field(default_factory=list)
    _started: float = field(default_factory=time.monotonic)

    @property
    def spent_s(self) -> float:
        """Since it began."""
        return time.monotonic() - self._started

    @property
    def speed(self) -> float:
        """Images a second, looked at."""
        return 1 / self.per_image_s if self.per_image_s else math.inf

    @property
    def told(self) -> str:
        """What is kept to, in words."""
        return f"the budget of {self.minutes:g} minutes"

    def measure(self, images: int, seconds: float) -> None:
        """Learns the speed from images made."""
        self.per_image_s = LOOKING * seconds / max(1, images)

    def affordable(self, reserved: int = 0) -> float:
        """How many images may still be made, besides `reserved` ones."""
        if self.minutes is None or not self.per_image_s:
            return math.inf
        return max(0.0, (60 * self.minutes - self.spent_s) / self.per_image_s - reserved)

    def slices(
        self, prompts: Sequence[int], cost: Callable[[Sequence[int]], int], *, first: Sequence[int] = (),
        reserved: int = 0,
    ) -> Iterator[list[int]]:  # fmt: skip
        """Prompts to draw now, by number, `first` among the first; ends when the next would take too long. `cost`: how many
        images some prompts take. The caller draws each slice before it asks for the next.
        """
        if self.minutes is None:
            yield list(prompts)
            return
        order = [*first, *(prompts[at] for at in spread_order(len(prompts)) if prompts[at] not in first)]
        least = max(LEAST_PROMPTS, len(first))
        size = max(1, math.ceil((len(order) - least) / _SLICES))
        drawn, seconds = 0, 0.0
        for some in (order[:least], *(order[at : at + size] for at in range(least, len(order), size))):
            images = cost(some)
            waiting = drawn * (LOOKING - 1) / LOOKING  # those just drawn are still to be looked at
            if drawn and images + waiting > self.affordable(reserved):
                return
            started = time.monotonic()
            yield some
            drawn, seconds = drawn + images, seconds + time.monotonic() - started
            if drawn:
                self.measure(drawn, seconds)

    def left_out(self, what: str) -> str:
        """Notes, and returns, that something was not drawn."""
        note = f"to keep to {self.told}: {what}, at {self.per_image_s:.2g} s an image"
        self.notes.append(note)
        return note


def spread_order(count: int) -> list[int]:
    """The numbers below `count` in an order of which every beginning is spread evenly: van der Corput's (1935), by reversed
    bits.
    """
    bits = max(1, (count - 1).bit_length())
    turned = (int(f"{number:0{bits}b}"[::-1], 2) for number in range(1 << bits))
    return [number for number in turned if number < count]
