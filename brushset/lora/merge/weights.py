"""How strong each adapter is in a mix: one number, or apart for UNet, text encoder and blocks.

`0.6`, or `0.6,text=0.3,up=0.8,up3=0.2`: what is said of a block goes before what is said of its side, and that before
the number for all. Block names are those of `inspect`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from brushset.errors import UsageError
from brushset.lora.inspection import block_of

_SIDES = ("unet", "text", "down", "mid", "up", "in/out")
_BLOCKS = {"text": 12, "down": 4, "up": 4}
_MAX = 10.0  # sd-scripts and the UIs take any number; beyond this an image is noise, and a comma was forgotten


@dataclass(frozen=True)
class Weight:
    """`parts`: "text", "unet", "up", "up 3" … → weight, where it is not `whole`."""

    whole: float
    parts: Mapping[str, float] = field(default_factory=dict, hash=False)  # a dict has no hash; equality counts it

    def of(self, module: str) -> float:
        """The weight of a module, by its Kohya name."""
        return self._of_part(block_of(module))

    def times(self, factor: float) -> Weight:
        return Weight(self.whole * factor, {key: value * factor for key, value in self.parts.items()})

    def towards(self, other: Weight, share: float) -> Weight:
        """The weight that is `share` of the way to another, for every module."""

        def between(one: float, end: float) -> float:
            return one if one == end else one + share * (end - one)

        keys = [*self.parts, *(key for key in other.parts if key not in self.parts)]
        parts = {key: between(self._of_part(key), other._of_part(key)) for key in keys}
        return Weight(between(self.whole, other.whole), parts)

    def _of_part(self, part: str) -> float:
        """Of a block, a side or a model: its own weight, or what is said of that which it is part of."""
        side = part.split(" ", 1)[0]
        model = "text" if side == "text" else "unet"
        for key in (part, side, model):
            if key in self.parts:
                return self.parts[key]
        return self.whole

    @property
    def nothing(self) -> bool:
        """Whether no module has a weight other than 0."""
        return not self.whole and not any(self.parts.values())

    def told(self) -> str:
        """As it is typed."""
        parts = [f"{key.replace(' ', '')}={value:g}" for key, value in self.parts.items()]
        return ",".join([f"{self.whole:g}", *parts])


def parse_weight(text: str, source: str) -> Weight:
    """Reads `0.6,text=0.3`.

    Raises:
        UsageError: no number, or a part that SD 1.5 has not; `source` is what the user typed.
    """
    first, *rest = text.split(",")
    parts = {}
    for item in rest:
        name, equals, value = item.partition("=")
        key = _part(name.strip())
        if not equals or key is None:
            raise UsageError(
                f"{source}: {item!r} is no PART=WEIGHT; parts are {', '.join(_SIDES)}, text0-text11, down0-down3, up0-up3"
            )
        parts[key] = _number(value, source)
    return Weight(_number(first, source), parts)


def normalised(weights: Sequence[Weight]) -> list[Weight]:
    """All of them times one factor, so that the numbers for all sum to 1.

    Raises:
        UsageError: they sum to nothing, or less.
    """
    total = sum(weight.whole for weight in weights)
    if total <= 0:
        raise UsageError(f"--normalize: the weights sum to {total:g}; they must sum to more than 0")
    return [weight.times(1 / total) for weight in weights]


def _part(name: str) -> str | None:
    if name in _SIDES:
        return name
    for side, count in _BLOCKS.items():
        number = name.removeprefix(side).strip()
        if name.startswith(side) and number.isdecimal() and int(number) < count:
            return f"{side} {int(number)}"
    return None


def _number(text: str, source: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if re.search(r"@|→|->|~", text):
        raise UsageError(
            f"{source}: one weight for all steps is expected here; weights that change are for `inference`"
        )
    if not math.isfinite(value) or abs(value) > _MAX:
        raise UsageError(
            f"{source}: weight {text!r}: a number is expected, such as 0.6, of at most {_MAX:g} either way"
        )
    return value
