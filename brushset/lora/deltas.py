"""Whether two adapters add the same to the model: ΔW of every module, in float32.

An image would not tell: one of 264 modules lost moves the UNet's output by 0.6 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from brushset.errors import VerificationFailed
from brushset.lora.adapter import Factors
from brushset.lora.kinds import some

MAX_RELATIVE_ERROR = 1e-6
"""Ten times what float32 leaves, whatever the file's dtype: neither form is rounded on the way (fp16 alone would be
2e-4 off, bf16 2e-3)."""


@dataclass(frozen=True)
class DeltaCheck:
    """How far ΔW' is from ΔW: the largest ‖ΔW − ΔW'‖ / ‖ΔW‖ (Frobenius) of all modules, and where."""

    modules: int
    max_relative_error: float
    worst: str


def compare_deltas(ours: Mapping[str, Factors], theirs: Mapping[str, Factors], source: str) -> DeltaCheck:
    """Compares every module.

    Raises:
        VerificationFailed: they do not hold the same modules, or shapes differ. `source` names them.
    """
    if missing := sorted(ours.keys() ^ theirs.keys()):
        raise VerificationFailed(f"{source}: {len(missing)} modules are not in both forms: {some(missing)}")
    errors = {name: _relative_error(name, ours[name], theirs[name], source) for name in ours}
    worst = max(errors, key=lambda name: errors[name])
    return DeltaCheck(len(errors), errors[worst], worst)


def require_equal(check: DeltaCheck, source: str) -> None:
    """Raises VerificationFailed where ΔW differs by more than float32's noise."""
    if not check.max_relative_error <= MAX_RELATIVE_ERROR:
        raise VerificationFailed(
            f"{source}: ΔW of {check.worst} differs by {check.max_relative_error:.2g} where {MAX_RELATIVE_ERROR:g} is "
            "allowed; the conversion is wrong and nothing was kept"
        )


def _relative_error(name: str, ours: Factors, theirs: Factors, source: str) -> float:
    delta, other = ours.delta(), theirs.delta()
    if delta.shape != other.shape:
        raise VerificationFailed(f"{source}: {name}: ΔW is {list(other.shape)} instead of {list(delta.shape)}")
    difference, size = (delta - other).norm().item(), delta.norm().item()
    return float(difference / size if size else difference)
