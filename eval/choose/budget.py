"""Minutes: what choosing will take, said before it starts, and what is left of those that were granted."""

from __future__ import annotations

import math
from dataclasses import dataclass

from brushset.protocols import Emit
from eval.choose.plan import Plan, cut_note, within
from eval.pace import Pace


@dataclass
class Budget(Pace):
    """The pace of choosing."""

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
