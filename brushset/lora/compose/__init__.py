"""How several adapters act together while an image is being made; brushset.lora.merge makes one file of them instead.

    weighted    W + Σ wᵢΔWᵢ                               1 UNet pass a step     the default
    schedule    W + Σ wᵢ(progress)ΔWᵢ                     1
    switch      one adapter at a time, in turn            1
    composite   the mean of what each predicts alone      N

A method is a function (mix, options) → Course, a file each; METHODS is their table. Nothing measured says that switch
or composite makes better images of two styles (for two or three adapters people saw no difference from weighted:
Multi-LoRA-Composition's human_eval/results.json, 14 sets), so plain weighting is the default.
"""

from __future__ import annotations

from collections.abc import Mapping

from brushset.errors import UsageError
from brushset.lora.compose.composite import composite
from brushset.lora.compose.method import Method, Options
from brushset.lora.compose.schedule import schedule
from brushset.lora.compose.switch import switch
from brushset.lora.compose.view import Course, Mix, View
from brushset.lora.compose.weighted import weighted

METHODS: Mapping[str, Method] = {
    "weighted": Method(weighted, takes=("normalised",), alone=False),
    "schedule": Method(schedule, takes=("schedules", "normalised"), alone=False),
    "switch": Method(switch, takes=("every",), alone=True),
    "composite": Method(composite, takes=("shares",), alone=True),
}


def default_method(options: Options) -> str:
    """The method where none is named: weighted, or schedule where a weight changes over the steps."""
    return "schedule" if options.schedules else "weighted"


def compose(method: str | None, mix: Mix, options: Options | None = None) -> Course:
    """The course of a mix; one without adapters is the base model's. None takes the default method.

    Raises:
        UsageError: an unknown method, options that it does not take, a mix that it cannot make; all findings. The
            course itself raises where it cannot do with so few steps.
    """
    options = options or Options()
    name = method or default_method(options)
    if findings := _findings(name, mix, options):
        raise UsageError.of_many(findings)
    return METHODS[name].course(mix, options) if mix else _base


def _base(_step: int, _steps: int) -> tuple[View, ...]:
    return (View(()),)


def _findings(name: str, mix: Mix, options: Options) -> list[str]:
    method = METHODS.get(name)
    if method is None:
        return [f"--method {name}: no such method; there are: {', '.join(METHODS)}"]
    names = [adapter for adapter, _ in mix]
    findings = [
        f"{each}: stands twice in one mix; fix: name it once" for each in dict.fromkeys(names) if names.count(each) > 1
    ]
    if unknown := [each for each in options.schedules if each not in names]:
        findings.append(f"{', '.join(unknown)}: has a schedule and is not in the mix ({', '.join(names) or 'of none'})")
    findings += [
        f"{name}: does not take {option}; {_takers(option)}" for option in options.told() if option not in method.takes
    ]
    findings += [
        f"{each}: its weight is 0 at every step; fix: leave it out"
        for each, found in options.schedules.items()
        if found.nothing
    ]
    if method.alone:
        findings += [
            f"{each}: weight 0 would leave {name} the base model by itself in its place; fix: leave it out"
            for each, weight in mix
            if weight.nothing
        ]
    return findings


def _takers(option: str) -> str:
    takers = [name for name, method in METHODS.items() if option in method.takes]
    return f"it is for {', '.join(takers)}"


__all__ = ["METHODS", "Course", "Method", "Mix", "Options", "View", "compose", "default_method"]
