"""What do sd-scripts' output lines say? (`scalars` reads its TensorBoard files.)

Markers and formats were measured at v0.10.1. The progress bar prints each step once or twice: after the update with the
old loss, if a tenth of a second has passed, and always after the loss is known. Its loss is the mean over the last
epoch's length (`avr_loss`), and once that is NaN it stays NaN.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

_BAR = re.compile(
    r"^steps:\s+\d+%\|[^|]*\|\s*(?P<step>\d+)/(?P<total>\d+) \[[\d:]+<(?P<eta>[\d:?]+),\s*(?P<rate>[\d.]+|\?)"
    r"(?P<unit>it/s|s/it)(?:,\s*(?P<postfix>[^\]]*))?\]"
)
_LOSS = re.compile(r"avr_loss=(\S+)")
_FACTS = {
    "device": re.compile(r"accelerator device: (\S+)"),
    "batches": re.compile(r"num batches per epoch\b.*: (\d+)$"),
    "epochs": re.compile(r"num epochs\b.*: (\d+)$"),
    "steps": re.compile(r"total optimization steps\b.*: (\d+)$"),
    "unet_modules": re.compile(r"create LoRA for U-Net: (\d+) modules"),
    "text_modules": re.compile(r"create LoRA for Text Encoder\D*: (\d+) modules"),
}
_PHASES = (
    ("loading model for process", "loading the base model"),
    ("caching latents...", "caching latents"),
    ("running training", "training"),
    ("generating sample images", "sampling"),
)
_STATE_DONE = re.compile(r"Random states saved in (?P<folder>.+)[/\\]random_states_\d+\.pkl")
# Bars other than the steps': caching latents (without a name), validation, sampling.
_OTHER_BAR = re.compile(
    r"(?P<name>[a-zA-Z][a-zA-Z ]*)?:?\s*\d+%\|[^|]*\|\s*(?P<done>\d+)/(?P<total>\d+) \[[\d:]+<[\d:?]+"
)
_BAR_NAMES = {"epoch validation steps": "validation images", "validation steps": "validation images"}


@dataclass(frozen=True)
class Progress:
    """One optimizer step, as the bar shows it. `loss` is NaN where sd-scripts says so."""

    step: int
    total: int
    loss: float | None
    it_per_s: float | None
    eta_s: float | None


@dataclass
class LogReader:
    """Reads a training's lines one by one. `facts` holds what sd-scripts said of device, counts and modules."""

    facts: dict[str, str] = field(default_factory=dict)
    saved: bool = False
    no_data: bool = False
    last_step: int = 0
    _loss: float | None = None
    _told_step: int = 0

    def read(self, line: str) -> Progress | None:
        """Returns a step's progress once its loss is known, each step at most once."""
        if match := _BAR.search(line):
            return self._progress(match)
        self.saved = self.saved or line.strip() == "model saved."
        self.no_data = self.no_data or "No data found" in line
        for name, pattern in _FACTS.items():
            if found := pattern.search(line.rstrip()):
                self.facts[name] = found[1]
        return None

    def _progress(self, match: re.Match[str]) -> Progress | None:
        step = int(match["step"])
        loss = _read_loss(match["postfix"])
        first_line_of_step = step != self.last_step
        stale = first_line_of_step and _same(loss, self._loss)
        self.last_step, self._loss = step, loss
        if loss is None or stale or step <= self._told_step:
            return None
        self._told_step = step
        return Progress(step, int(match["total"]), loss, _rate(match["rate"], match["unit"]), _seconds(match["eta"]))


@dataclass(frozen=True)
class Bar:
    """A progress bar that is not the training's own."""

    what: str
    done: int
    total: int


def read_bar(line: str, phase: str) -> Bar | None:
    """The bar on a line; one without a name belongs to the phase that sd-scripts is in."""
    match = None if _BAR.search(line) else _OTHER_BAR.search(line)
    if match is None:
        return None
    name = (match["name"] or "").strip()
    return Bar(_BAR_NAMES.get(name, name) or phase, int(match["done"]), int(match["total"]))


def finished_state(line: str) -> str | None:
    """The folder of a state of which the last file was just written, as sd-scripts names it."""
    match = _STATE_DONE.search(line)
    return match["folder"] if match else None


def describe_phase(line: str) -> str | None:
    """What sd-scripts has begun to do, in words, where a line says so."""
    return next((phase for marker, phase in _PHASES if marker in line), None)


def _read_loss(postfix: str | None) -> float | None:
    if not postfix or not (match := _LOSS.search(postfix)):
        return None
    try:
        return float(match[1].rstrip(","))
    except ValueError:
        return None


def _same(one: float | None, other: float | None) -> bool:
    return one == other or (one is not None and other is not None and math.isnan(one) and math.isnan(other))


def _rate(text: str, unit: str) -> float | None:
    if text == "?" or not float(text):
        return None
    return float(text) if unit == "it/s" else 1 / float(text)


def _seconds(clock: str) -> float | None:
    """`1:02:03` → 3723.0."""
    if "?" in clock:
        return None
    total = 0
    for part in clock.split(":"):
        total = total * 60 + int(part)
    return float(total)
