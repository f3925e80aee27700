"""Where runs are done. A new engine is a file here and a line in EXECUTORS; it offers `protocols.Executor`.

The engine queues, places, restarts and cancels. What it runs is one command on one run folder, started anew as often as it
takes, and how that stands is read from the folder (brushset.executors.standing), not asked of the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from brushset.protocols import Executor
from brushset.spec import ExecutorSection

Slots = Sequence[Mapping[str, str]]


def _local(settings: ExecutorSection, slots: Slots) -> Executor:
    from brushset.executors.local import LocalExecutor

    return LocalExecutor(slots, settings.max_retries)


def _ray(settings: ExecutorSection, slots: Slots) -> Executor:
    from brushset.executors.ray import RayExecutor

    return RayExecutor(settings.ray, settings.max_retries, at_once=len(slots))


def _slurm(settings: ExecutorSection, _slots: Slots) -> Executor:
    from brushset.executors.slurm import SlurmExecutor

    return SlurmExecutor(settings.slurm, settings.max_retries)


EXECUTORS: Mapping[str, Callable[[ExecutorSection, Slots], Executor]] = {"local": _local, "ray": _ray, "slurm": _slurm}


def make_executor(settings: ExecutorSection, slots: Slots) -> Executor:
    """The executor that the settings name. `slots` are the environments of as many runs at once on this machine."""
    return EXECUTORS[settings.use](settings, slots)
