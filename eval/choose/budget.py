"""Minutes: what choosing will take, said before it starts, and what is left of those that were granted."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

from brushset.protocols import Emit
from eval.choose.plan import Plan, cut_note, within

_LOOKING = 1.3
"""By which an image takes longer than to sample: encoders look at it, and load. Measured only once it is spent."""


@dataclass
class Budget:
    """`minutes` None: as long as it takes. `per_image_s` is known once some images were made."""

    minutes: float | None
    per_image_s: float = 0.0
    _started: float = field(default_factory=time.monotonic)

    @property
    def spent_s(self) -> float:
        """Since it began."""
        return time.monotonic() - self._started

    def measure(self, images: int, seconds: float) -> None:
        """Learns the speed from images made."""
        self.per_image_s = _LOOKING * seconds / max(1, images)

    def affordable(self, reserved: int = 0) -> float:
        """How many images may still be made, besides `reserved` ones."""
        if self.minutes is None or not self.per_image_s:
            return math.inf
        return max(0.0, (60 * self.minutes - self.spent_s) / self.per_image_s - reserved)

    def fit(self, plan: Plan, emit: Emit) -> tuple[Plan | None, str]:
        """The plan as far as the minutes go, None where nothing worth it fits; and what was left out, in words."""
        images = self.affordable()
        needed = plan.images * self.per_image_s / 60
        emit("note", text=f"about {needed:.1f} minutes at {self.speed:.2g} images/s")
        cut = plan if images == math.inf else within(plan, int(images))
        if cut is None:
            granted = f"a budget of {self.minutes:g} minutes is {int(images)} images at {self.speed:.2g} images/s"
            return None, f"{granted}, and even the coarsest choice takes more; all of it takes {needed:.0f} minutes"
        note = cut_note(plan, cut)
        if note:
            emit("note", text=note)
        return cut, note

    @property
    def speed(self) -> float:
        """Images a second, looked at."""
        return 1 / self.per_image_s if self.per_image_s else math.inf
