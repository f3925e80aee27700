"""Samplers by the names that A1111 gave them, as diffusers' schedulers.

Settings follow A1111's: DPM++ and Euler take timesteps spaced over all of training's, DDIM steps from its first; Karras'
sigmas are arXiv 2206.00364, eq. 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from brushset.bases.configs import SCHEDULER_CONFIG
from brushset.errors import UsageError

_TRAINING = {key: SCHEDULER_CONFIG[key] for key in ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps")}


@dataclass(frozen=True)
class _Kind:
    """diffusers' class, and what it is told beyond SD 1.5's noise schedule."""

    name: str
    settings: Mapping[str, object] = field(default_factory=dict)


_DPM, _KARRAS = "DPMSolverMultistepScheduler", {"use_karras_sigmas": True}
_MULTISTEP = {"algorithm_type": "dpmsolver++", "solver_order": 2, "steps_offset": 1}
_SDE = _MULTISTEP | {"algorithm_type": "sde-dpmsolver++"}

SCHEDULERS: Mapping[str, _Kind] = {
    "DPM++ 2M Karras": _Kind(_DPM, _MULTISTEP | _KARRAS),  # arXiv 2211.01095, algorithm 2
    "DPM++ 2M": _Kind(_DPM, _MULTISTEP),
    "DPM++ 2M SDE Karras": _Kind(_DPM, _SDE | _KARRAS),
    "DPM++ 2M SDE": _Kind(_DPM, _SDE),
    "Euler": _Kind("EulerDiscreteScheduler"),  # arXiv 2206.00364, algorithm 2 without churn
    "Euler a": _Kind("EulerAncestralDiscreteScheduler"),
    "Heun": _Kind("HeunDiscreteScheduler"),  # arXiv 2206.00364, algorithm 1; two UNet passes a step
    "DDIM": _Kind("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),  # arXiv 2010.02502
    "UniPC": _Kind("UniPCMultistepScheduler"),  # arXiv 2302.04867
}  # fmt: skip
DEFAULT_SCHEDULER = "DPM++ 2M Karras"


def scheduler_name(text: str) -> str:
    """The name as it stands in SCHEDULERS, whatever its case and its dashes.

    Raises:
        UsageError: there is none of that name.
    """
    for name in SCHEDULERS:
        if _plain(name) == _plain(text):
            return name
    raise UsageError(f'scheduler "{text}": unknown; there are: {", ".join(SCHEDULERS)}')


def make_scheduler(name: str) -> Any:
    """A fresh scheduler of SD 1.5's noise schedule, by a name of SCHEDULERS."""
    import diffusers

    kind = SCHEDULERS[name]
    return getattr(diffusers, kind.name)(**_TRAINING, **kind.settings)


def forget_history(scheduler: Any) -> None:
    """Lets a multistep solver begin anew at this step, as at its first: order 1, no corrector. Others keep nothing."""
    if hasattr(scheduler, "lower_order_nums"):
        scheduler.lower_order_nums = 0
    if hasattr(scheduler, "last_sample"):
        scheduler.last_sample = None


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum() or letter == "+")
