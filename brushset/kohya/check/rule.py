"""What a rule on a training TOML is: the key it is told at, when it holds, and what sd-scripts then does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from brushset.kohya.check.findings import Severity
from brushset.kohya.check.options import default_of

ADAPTIVE = ("dadapt", "prodigy")  # optimizers that find their own rate, by the start of their names
PLAIN_LORA = "networks.lora"


@dataclass(frozen=True)
class Settings:
    """A training TOML, flattened: what is given, else sd-scripts' default."""

    given: Mapping[str, Any]

    def __getitem__(self, key: str) -> Any:
        value = self.given.get(key)
        return default_of(key) if value is None else value

    def on(self, *keys: str) -> bool:
        """Whether any of them is given and asks for something: not false, 0 or empty."""
        return any(bool(self.given.get(key)) for key in keys)

    def changed(self, key: str) -> bool:
        """Whether a key is given with another value than its default, and asks for something."""
        return self.on(key) and self.given[key] != default_of(key)

    @property
    def optimizer(self) -> str:
        """The optimizer's name in lower case."""
        if self.on("use_8bit_adam"):
            return "adamw8bit"
        return "lion" if self.on("use_lion_optimizer") else str(self["optimizer_type"] or "AdamW").lower()

    @property
    def finds_its_rate(self) -> bool:
        """D-Adaptation, Prodigy and Adafactor by its default work out the rate themselves."""
        adafactor = self.optimizer == "adafactor" and "relative_step=False" not in (self["optimizer_args"] or ())
        return self.optimizer.startswith(ADAPTIVE) or adafactor or "schedulefree" in self.optimizer

    @property
    def text_encoder_rate(self) -> float:
        """The rate that the text encoder gets."""
        rate = self.given.get("text_encoder_lr")
        if isinstance(rate, list):
            rate = rate[0] if rate else None
        return float(self["learning_rate"] if rate is None else rate)

    @property
    def unet_rate(self) -> float:
        """The rate that the UNet gets."""
        rate = self.given.get("unet_lr")
        return float(self["learning_rate"] if rate is None else rate)

    @property
    def pace(self) -> float:
        """The UNet's rate times alpha/dim: under an Adam, ΔW moves by about so much a step."""
        return self.unet_rate * float(self["network_alpha"]) / float(self["network_dim"] or 4)

    @property
    def warmup(self) -> float:
        """lr_warmup_steps, a share or a number of steps."""
        value = self["lr_warmup_steps"] or 0
        return value if isinstance(value, int | float) else 0

    def network_arg(self, name: str) -> bool:
        """Whether network_args names it."""
        return any(str(entry).startswith(f"{name}=") for entry in self["network_args"] or ())


@dataclass(frozen=True)
class Rule:
    """Told at `key` where `holds`. Texts may name values of the settings in braces. `sd15_only` rules say nothing of
    files for sd-scripts' other scripts.
    """

    key: str
    holds: Callable[[Settings], bool]
    text: str
    effect: str
    fix: str = ""
    severity: Severity = "wrong"
    sd15_only: bool = False

    def told(self, settings: Settings) -> tuple[str, str, str]:
        """Text, effect and fix with the values filled in."""
        values = _Values(settings)
        return self.text.format_map(values), self.effect.format_map(values), self.fix.format_map(values)


class _Values(dict[str, Any]):
    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings = settings

    def __missing__(self, key: str) -> Any:
        if key == "scale":
            return f"{float(self._settings['network_alpha']) / float(self._settings['network_dim'] or 4):g}"
        value = self._settings[key]
        return str(value).lower() if isinstance(value, bool) else value


def needs(key: str, *others: str, severity: Severity = "wrong") -> Rule:
    """A key that only acts where one of `others` is on."""
    return Rule(
        key,
        lambda s: s.changed(key) and not s.on(*others),
        f"{key} = {{{key}}} has no effect without {' or '.join(others)}",
        "sd-scripts ignores it",
        f"leave it out, or set {others[0]}",
        severity,
    )


def needs_schedule(key: str, *schedules: str) -> Rule:
    """A key that only some schedules use."""
    return Rule(
        key,
        lambda s: s.changed(key) and not s.on("lr_scheduler_type") and s["lr_scheduler"] not in schedules,
        f'{key} = {{{key}}} has no effect with lr_scheduler = "{{lr_scheduler}}"',
        f"only {' and '.join(schedules)} use it",
        "leave it out, or choose such a schedule",
    )


def stops(
    key: str, holds: Callable[[Settings], bool], text: str, effect: str, fix: str = "", *, sd15_only: bool = False
) -> Rule:
    """A combination that sd-scripts dies of."""
    return Rule(key, holds, text, f"sd-scripts stops: {effect}", fix, sd15_only=sd15_only)
