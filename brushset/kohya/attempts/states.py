"""Which of a training's saved states can be gone on from?

sd-scripts writes a state straight into its final folder, train_state.json first and the weights after, so that a folder
with that file proves nothing. And a state is partly a pickle, which runs code when it is loaded. So a state counts only
where we saw it finished and wrote down its hashes then, where these still hold, and where its weights open, have the keys
and shapes of this training and are finite.

A state's own step counter is not believed: sd-scripts begins to count anew with each start (measured at v0.10.1). What
its number means follows from where its attempt began.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from brushset.errors import BrushsetError
from brushset.files import digest_files, list_files, read_json, sha256_file
from brushset.kohya.plan import Plan
from brushset.lora.verify import find_faults
from brushset.protocols import TrainJob
from brushset.records import Record

REQUIRED = ("train_state.json", "model.safetensors", "optimizer.bin", "scheduler.bin", "random_states_0.pkl")
KEPT = 2
_NAME = re.compile(r"-(?:step(?P<step>\d{8})|(?P<epoch>\d{6}))-state$")


class SavedState(Record):
    """A finished state. `step` is absolute; `whole_epoch` where it was saved at an epoch's end, validation included."""

    folder: str
    step: int
    epoch: int
    whole_epoch: bool
    files: dict[str, str]


@dataclass(frozen=True)
class Position:
    """Where a state stands: the absolute step, in which epoch (from 1), and whether that epoch is done."""

    step: int
    epoch: int
    whole_epoch: bool


def position_of(folder: str, *, base_step: int, plan: Plan) -> Position | None:
    """What a state's folder name means in an attempt whose trainer counts from `base_step`; None for other folders and
    for the state at the very end, from which nothing is left to train.
    """
    if not (match := _NAME.search(folder)):
        return None
    if match["epoch"]:
        epoch = int(match["epoch"])
        found = Position(plan.step_after(epoch), epoch, whole_epoch=True)
    else:
        step = base_step + int(match["step"])
        found = Position(step, (step - 1) // plan.steps_per_epoch + 1, whole_epoch=False)
    return found if found.step < plan.steps else None


def seal_state(folder: Path, position: Position) -> SavedState | None:
    """The record of a state that was just finished, with the hashes of its files; None where a file is missing."""
    if any(not (folder / name).is_file() for name in REQUIRED):
        return None
    return SavedState(
        folder=folder.name,
        step=position.step,
        epoch=position.epoch,
        whole_epoch=position.whole_epoch,
        files=digest_files(list_files(folder), folder),
    )


def state_problem(folder: Path, state: SavedState, *, base_step: int, job: TrainJob) -> str:
    """Why a state cannot be gone on from, or an empty string."""
    there = {path.relative_to(folder).as_posix() for path in list_files(folder)} if folder.is_dir() else set()
    if missing := sorted(state.files.keys() - there):
        return f"{missing[0]} is missing"
    if changed := [name for name, sha256 in state.files.items() if sha256_file(folder / name) != sha256]:
        return f"{changed[0]} is not what was saved"
    if added := sorted(there - state.files.keys()):
        return f"{added[0]} was not saved by the trainer"
    try:
        said = read_json(folder / "train_state.json")["current_step"]
    except (BrushsetError, KeyError, TypeError):
        return "train_state.json cannot be read"
    if said != state.step - base_step:
        return f"train_state.json says step {said}, expected {state.step - base_step}"
    weights = folder / "model.safetensors"
    faults = find_faults(weights, job.spec.train, narrow=job.base.narrow)
    return faults[0].removeprefix(f"{weights}: ") if faults else ""
