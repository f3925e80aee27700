"""How images are sampled, and what one image is to be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from brushset.errors import UsageError
from brushset.generation.schedulers import DEFAULT_SCHEDULER, scheduler_name
from brushset.lora.compose.view import Course
from brushset.spec import EvaluateSection

_DEFAULTS = EvaluateSection()


@dataclass(frozen=True)
class Sampling:
    """How an image is sampled; the defaults are the evaluation grid's. Width and height in pixels, multiples of 8.

    `clip_skip` as in training: 1 takes the text encoder's last layer, 2 the one before, for prompt and negative prompt
    alike, as A1111 does (diffusers' pipeline leaves the negative prompt at the last). `batch_size` counts views, an
    image having one, or with Composite as many as adapters. `scheduler` is one of brushset.generation.schedulers.
    """

    negative_prompt: str = ""
    steps: int = _DEFAULTS.steps
    guidance: float = _DEFAULTS.guidance
    width: int = _DEFAULTS.width
    height: int = _DEFAULTS.height
    batch_size: int = _DEFAULTS.batch_size
    clip_skip: int = 1
    scheduler: str = DEFAULT_SCHEDULER

    def __post_init__(self) -> None:
        """Refuses what the models would refuse late or not at all; all findings."""
        findings = []
        for side in ("width", "height"):
            value = getattr(self, side)
            if value < 64 or value % 8:
                findings.append(f"{side} = {value}: must be a multiple of 8, at least 64")
        counts = ("steps", "batch_size", "clip_skip")
        findings += [
            f"{name} = {getattr(self, name)}: must be at least 1" for name in counts if getattr(self, name) < 1
        ]
        if self.clip_skip > 12:
            findings.append(f"clip_skip = {self.clip_skip}: the text encoder has 12 layers; 1 or 2 is usual")
        if not self.guidance >= 0:
            findings.append(f"guidance = {self.guidance}: must be 0 or more; 7 is usual, 1 and less is without")
        try:
            object.__setattr__(self, "scheduler", scheduler_name(self.scheduler))
        except UsageError as error:
            findings.append(str(error))
        if findings:
            raise UsageError.of_many(findings)


class SamplingOptions(TypedDict, total=False):
    """Sampling's fields, as keywords."""

    negative_prompt: str
    steps: int
    guidance: float
    width: int
    height: int
    batch_size: int
    clip_skip: int
    scheduler: str


@dataclass(frozen=True)
class Picture:
    """One image: what it shows, the noise that it starts from, and what is composed at each of its steps."""

    prompt: str
    negative_prompt: str
    seed: int
    course: Course
