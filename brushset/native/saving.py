"""When is the state of an unfinished training saved? Of all that share a pass at the same moment, so that those who are
trained beside one another are so again when they go on: then every bit comes out as if nothing had happened.

That moment is when all that was done has been told: every [train] save_state_minutes, and when one of them ends. All
states are written first and then put into place together, so that a kill leaves all the old ones or all the new ones, but
for the time of a few renames.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from brushset.errors import EnvironmentProblem
from brushset.native.training import Training
from brushset.stopping import is_stop_asked, raise_if_asked, stopping_at_rest

T = TypeVar("T")


class States:
    """Saves some trainings. Those that failed or were published already are left alone."""

    def __init__(self, trainings: Sequence[Training]) -> None:
        self._trainings = list(trainings)
        self._over: set[int] = set()
        self._saved_at = time.monotonic()

    def at_rest(self) -> None:
        """Saves them where the first of them wants it by now; and where SIGTERM was noted, which is raised then.

        Raises:
            Interrupted: SIGTERM came since the last time.
        """
        if is_stop_asked():
            self.save()
            raise_if_asked()
        minutes = [training.job.spec.train.save_state_minutes for training in self._living()]
        wanted = [60 * each for each in minutes if each]
        if wanted and time.monotonic() - self._saved_at >= min(wanted):
            self.save()

    def before_a_stop(self, updates: Iterator[T]) -> Iterator[T]:
        """The updates of all of them; SIGTERM meanwhile waits until their states are saved."""
        with stopping_at_rest():
            yield from updates

    def save(self) -> None:
        """Saves them now. One that cannot be saved goes on without; one that has ended is saved this once, beside those
        that go on, and not for itself: its files are there.
        """
        written = []
        living = self._living()
        if all(training.ended for training in living):
            return
        for training in living:
            if training.ended:
                self._over.add(id(training))
            if not training.job.spec.train.save_state_minutes or not training.is_told:
                continue
            try:
                training.write_state()
                written.append(training)
            except EnvironmentProblem as error:
                training.emit("warning", text=f"no state was saved, training goes on: {error}")
        for training in written:
            training.take_state()
        self._saved_at = time.monotonic()

    def _living(self) -> list[Training]:
        return [each for each in self._trainings if each.failure is None and id(each) not in self._over]
