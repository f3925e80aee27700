"""Keeps attempt.json true while its trainer runs, and the disk free of what nobody will go on from.

The last two states stay: the newest, and the one before it in case the newest does not open when it is needed.
"""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path
from typing import Any

from brushset.kohya.attempts.history import AttemptFolder, AttemptRecord, attempt_folder
from brushset.kohya.attempts.states import KEPT, position_of, seal_state
from brushset.records import Ending

_STEP_FILE = re.compile(r"-step(\d{8})\.safetensors$")


class Keeper:
    """One running attempt's record. Every change is on disk before the call returns."""

    def __init__(self, attempts: Path, record: AttemptRecord) -> None:
        self.record = record
        self.folder: AttemptFolder = attempt_folder(attempts, record.number)
        self._attempts = attempts
        self._began = time.monotonic()
        self.folder.output.mkdir(parents=True)
        self._write()

    def learn(self, *, last_step: int, device: str) -> None:
        """Notes how far the trainer is and on what; written with the next change."""
        self.record = self.record.model_copy(update={"last_step": last_step, "device": device})

    def state_finished(self, name: str) -> bool:
        """Seals a state that the trainer has just finished, and drops what it makes needless."""
        folder = self.folder.output / name
        position = position_of(name, base_step=self.record.base_step, plan=self.record.plan)
        state = position and seal_state(folder, position)
        if not state or any(state.folder == known.folder for known in self.record.states):
            return False
        self._write(states=(*self.record.states, state))
        self._drop_old()
        return True

    def ended(self, ending: Ending, message: str = "") -> None:
        """Writes down how it ended."""
        self._write(ending=ending, message=message)

    def _write(self, **changes: Any) -> None:
        seconds = round(time.monotonic() - self._began, 2)
        self.record = self.record.model_copy(update={**changes, "seconds": seconds})
        self.folder.write(self.record)

    def _drop_old(self) -> None:
        """Removes states that are neither among the last two nor being written, and the weights saved beside them."""
        line = [(self.record.origin.attempt, self.record.origin.state.folder)] if self.record.origin else []
        line += [(self.record.number, state.folder) for state in self.record.states]
        kept = {attempt_folder(self._attempts, number).output / name for number, name in line[-KEPT:]}
        sealed = {self.folder.output / state.folder for state in self.record.states}
        for path in sorted(self._attempts.glob("attempt-*/output/*-state")):
            being_written = path.parent == self.folder.output and path not in sealed
            if path not in kept and not being_written:
                shutil.rmtree(path, ignore_errors=True)
        newest = max(state.step for state in self.record.states) - self.record.base_step
        for path in sorted(self.folder.output.glob("*.safetensors")):
            if (match := _STEP_FILE.search(path.name)) and int(match[1]) <= newest:
                path.unlink(missing_ok=True)
