"""[executor]: where runs are done, which is no part of what they are."""

from __future__ import annotations

import datetime as dt
import operator
import re
import sys
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from brushset.spec.section import Names, Section

_TIME_LIMIT = re.compile(r"(?:(?P<days>\d+)-)?(?P<clock>\d+(?::\d+){0,2})")
_LEAST_LIMIT_S = 300


class RaySection(Section):
    """Where Ray runs them."""

    address: str | None = Field(
        None, description="of a cluster that is up, host:port or auto; default: one on this machine, while it is needed"
    )
    gpus_per_run: float | None = Field(
        None,
        ge=0,
        description="0.25 puts four runs on a GPU; default: a whole one, or what --parallel makes of it; none where there is none",
    )
    cpus_per_run: float = Field(1.0, ge=0, description="one loads images, the rest waits for the GPU")


def _limit(value: object) -> object:
    """Slurm's hours:minutes:seconds or minutes, which TOML takes for a time of day or a number where no quotes are."""
    return str(value) if isinstance(value, dt.time | int) else value


def _long_enough(limit: str) -> str:
    """Raises ValueError for what Slurm would not understand, and for a limit that leaves a run no time to get anywhere."""
    match = _TIME_LIMIT.fullmatch(limit)
    if not match:
        raise ValueError("expected minutes, hours:minutes:seconds or days-hours:minutes:seconds")
    parts = [int(part) for part in match["clock"].split(":")]
    units = (3600, 60, 1) if match["days"] or len(parts) == 3 else (60, 1)
    seconds = int(match["days"] or 0) * 86400 + sum(map(operator.mul, parts, units))
    if seconds < _LEAST_LIMIT_S:
        raise ValueError("at least 5 minutes: Slurm says SIGTERM two to three minutes before the limit")
    return limit


class SlurmSection(Section):
    """What sbatch is told. Nothing here comes from a style's name or captions: `setup` is the user's own shell."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: Annotated[str, BeforeValidator(_limit), AfterValidator(_long_enough)] = Field(
        "08:00:00", description="limit of one run; a run that takes longer is stopped two minutes before, and goes on"
    )
    gres: str | None = Field("gpu:1", description="one GPU, as most clusters call it; none where there are no GPUs")
    cpus_per_task: int = Field(4, ge=1, description="the captioner and the audit use them; training hardly does")
    mem: str | None = Field(None, description="of main memory, 16G say; default: the cluster's own")
    at_once: int | None = Field(
        None, ge=1, description="runs at the same time at most; default: as many as there is room for"
    )
    setup: Names = Field((), description='lines of shell before the run, such as "module load cuda/12.8"')
    container: Names = Field(
        (), description='words in front of the command, such as ["apptainer", "exec", "--nv", "/images/brushset.sif"]'
    )
    python: str | None = Field(None, description="on the nodes; default: the one that submits, by its path")
    sbatch: Names = Field((), description='further options of sbatch, such as "--constraint=h100"')


class ExecutorSection(Section):
    """Where runs are done: no part of what they are."""

    use: Literal["local", "ray", "slurm"] = Field("local", description="local needs nothing but this machine")
    max_retries: int = Field(
        2,
        ge=0,
        description="of a run that the machine killed: a node lost twice is rare, a third death is the run's own",
    )
    ray: RaySection = RaySection()
    slurm: SlurmSection = SlurmSection()

    @property
    def is_here(self) -> bool:
        """Whether this machine's GPUs and cores do it."""
        return self.use == "local" or (self.use == "ray" and self.ray.address is None)

    @property
    def python(self) -> str:
        """What runs a run: this very interpreter, unless the nodes of a cluster have another."""
        return (self.slurm.python if self.use == "slurm" else None) or sys.executable
