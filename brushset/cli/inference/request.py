"""What `inference` was asked for, checked before any model is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brushset.cli.inference.adapters import Adapter
from brushset.cli.inference.columns import Column
from brushset.cli.inference.findings import collecting, refuse
from brushset.cli.options import Options
from brushset.errors import UsageError
from brushset.spec import EvaluateSection

if TYPE_CHECKING:
    from brushset.generator import Sampling
    from brushset.lora.compose import Options as ComposeOptions

PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Drawing:
    """How images are sampled, where the user says; None leaves it to the style's [evaluate]."""

    negative: str | None = None
    steps: int | None = None
    guidance: float | None = None
    size: str | None = None
    width: int | None = None
    height: int | None = None
    scheduler: str | None = None
    clip_skip: int | None = None


@dataclass(frozen=True)
class Composing:
    """How several adapters act together."""

    method: str | None = None
    every: int | None = None
    shares: str | None = None
    normalize: bool = False


@dataclass(frozen=True)
class Gridding:
    """Which mixes are drawn, and whether they are laid side by side."""

    grid: bool = False
    weights: tuple[str, ...] = ()
    each: bool = False


@dataclass(frozen=True)
class Machine:
    """How the models are run."""

    compile: bool = False
    precision: str | None = None


@dataclass(frozen=True)
class InferenceRequest:
    """What is to be drawn."""

    prompts: tuple[str, ...] = ()
    prompt_files: tuple[Path, ...] = ()
    loras: tuple[str, ...] = ()
    num_images: int = 1
    triggers: bool = True
    out: Path | None = None
    drawing: Drawing = field(default_factory=Drawing)
    composing: Composing = field(default_factory=Composing)
    gridding: Gridding = field(default_factory=Gridding)
    machine: Machine = field(default_factory=Machine)


def read_sampling(drawing: Drawing, options: Options, adapters: Sequence[Adapter]) -> Sampling:
    """What was asked for over what the first style's [evaluate] says.

    Raises:
        UsageError: all that cannot be sampled.
    """
    from brushset.generator import Sampling

    spec = next((adapter.spec for adapter in adapters if adapter.spec), None)
    settings = spec.evaluate if spec else EvaluateSection()
    width, height = _size(drawing)
    asked: Mapping[str, Any] = {
        "negative_prompt": drawing.negative,
        "steps": drawing.steps,
        "guidance": drawing.guidance,
        "width": width,
        "height": height,
        "batch_size": options.batch_size,
    }
    values = {name: getattr(settings, name) if value is None else value for name, value in asked.items()}
    trained = spec.train.clip_skip if spec else 1
    values["clip_skip"] = trained if drawing.clip_skip is None else drawing.clip_skip
    if drawing.scheduler is not None:
        values["scheduler"] = drawing.scheduler
    return Sampling(**values)


def read_composing(composing: Composing, columns: Sequence[Column], steps: int) -> ComposeOptions:
    """What the method is told; every mix is composed once for nothing, so that what cannot be is said at once.

    Raises:
        UsageError: an unknown method, options that it does not take, weights that are none, a mix that it cannot make.
    """
    from brushset.generation.mixes import read_mix
    from brushset.lora.compose import METHODS, compose
    from brushset.lora.compose import Options as ComposeOptions

    given: Mapping[str, Any] = {"every": composing.every, "shares": composing.shares}
    options = ComposeOptions(
        normalised=composing.normalize, **{name: value for name, value in given.items() if value is not None}
    )
    method = METHODS.get(composing.method or "")
    if method is not None and method.alone and all(len(column.mix) < 2 for column in columns):
        names = ", ".join(dict.fromkeys(name for column in columns for name, _ in column.mix)) or "none"
        each = "" if len(columns) < 2 else " in each mix"
        raise UsageError(
            f"--method {composing.method}: is for two adapters and more, and there is one{each} ({names}); "
            "fix: --loras with two, or leave --method out"
        )
    findings: list[str] = []
    for column in columns:
        with collecting(findings):
            mix, read = read_mix(column.mix, options_for(column, options))
            compose(method_for(column, composing), mix, read)(0, steps)
    refuse(findings)
    return options


def method_for(column: Column, composing: Composing) -> str | None:
    """The method of a mix; one adapter, or none, has nothing to compose."""
    return composing.method if len(column.mix) > 1 or composing.method not in ("switch", "composite") else None


def options_for(column: Column, options: ComposeOptions) -> ComposeOptions:
    """What the method is told of a mix; nothing where there is nothing to compose."""
    from brushset.lora.compose import Options as ComposeOptions

    return options if len(column.mix) > 1 else ComposeOptions()


def read_precision(machine: Machine) -> Any:
    """The torch dtype, None for what fits the device.

    Raises:
        UsageError: no such precision.
    """
    import torch

    if machine.precision is None:
        return None
    if machine.precision not in PRECISIONS:
        raise UsageError(f"--precision {machine.precision}: must be one of {', '.join(PRECISIONS)}")
    return getattr(torch, PRECISIONS[machine.precision])


def _size(drawing: Drawing) -> tuple[int | None, int | None]:
    if drawing.size is None:
        return drawing.width, drawing.height
    if drawing.width is not None or drawing.height is not None:
        raise UsageError(f"--size {drawing.size}: goes without --width and --height; fix: say the size once")
    match = re.fullmatch(r"\s*(\d+)\s*(?:[x×X*]\s*(\d+))?\s*", drawing.size)
    if match is None:
        raise UsageError(f"--size {drawing.size}: WIDTHxHEIGHT is expected, such as 512x768")
    width = int(match.group(1))
    return width, int(match.group(2) or width)
