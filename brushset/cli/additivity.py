"""`conflicts --functional`: what the adapters do to each other's noise predictions, on the base model itself."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from brushset.cli.adapter_sources import locate, split_source
from brushset.cli.devices import see_only
from brushset.cli.guard import listen
from brushset.cli.options import Options
from brushset.errors import UsageError
from brushset.paths import RunsDir
from brushset.spec import DEFAULT_BASE, EvaluateSection

if TYPE_CHECKING:
    from brushset.generation.additivity import Additivity
    from brushset.lora.merge.mix import Part
    from brushset.records import BaseFile

_PROMPTS = EvaluateSection().prompts[:2]  # a person and a landscape
AGAINST, UNSUMMED, EATEN = -0.2, 0.5, 0.6
"""Where a line is said about a pair; the limits are ours, not yet held against images."""


@dataclass(frozen=True)
class FunctionalFindings:
    """Every pair, and the base that they were tried on."""

    base: BaseFile
    pairs: tuple[Additivity, ...]


def try_pairs(options: Options, parts: Sequence[Part], sources: Sequence[str], size_px: int) -> FunctionalFindings:
    """Asks the base model, with no adapter, each, and both, for every pair, at the weights given.

    Raises:
        UsageError: adapters that do not fit the base, styles trained on different ones, an odd size.
    """
    from brushset.bases.resolve import resolve_base

    if size_px % 8 or size_px < 64:
        raise UsageError(f"--size {size_px}: must be a multiple of 8, at least 64")
    see_only(options.gpus)
    name, revision = (options.base_model, None) if options.base_model else _stated_base(sources, options)
    events, listener = listen(options, 1)
    try:
        base = resolve_base(name, revision, events)
        return FunctionalFindings(base, tuple(_compared(base, parts, size_px, options.seed or 0, events)))
    finally:
        if listener is not None:
            listener.close()


def _compared(base: BaseFile, parts: Sequence[Part], size_px: int, seed: int, emit: Any) -> list[Additivity]:
    import torch

    from brushset.bases.load import load_components
    from brushset.generation.additivity import AdditivityProbe, ProbeSettings
    from brushset.lora.inspection import trigger_of

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float16 if device == "cuda" else torch.float32
    components = load_components(base, device=device, dtype=dtype, parts=("unet", "text_encoder", "tokenizer"))
    probe = AdditivityProbe(components, {part.name: part.adapter for part in parts}, base.name, emit)
    pairs = list(itertools.combinations(parts, 2))
    found = []
    for done, pair in enumerate(pairs):
        emit("progress", what="pairs on the base model", done=done, total=len(pairs))
        triggers = [trigger for part in pair if (trigger := trigger_of(part.adapter.metadata)[0])]
        prompts = tuple(", ".join([*triggers, prompt]) for prompt in _PROMPTS)
        first, second = ((part.name, part.weight) for part in pair)
        found.append(probe.compare(first, second, ProbeSettings(prompts, size_px, seed)))
    emit("progress", what="pairs on the base model", done=len(pairs), total=len(pairs))
    return found


def _stated_base(sources: Sequence[str], options: Options) -> tuple[str, str | None]:
    """What the styles among the adapters were trained on; SD 1.5 where there are only files."""
    runs = RunsDir(options.runs_dir.absolute())
    styles = [locate(split_source(source)[0], runs).style for source in sources]
    bases = {(style.spec.base.model, style.spec.base.revision) for style in styles if style}
    if len(bases) > 1:
        listed = ", ".join(sorted(model for model, _ in bases))
        raise UsageError(f"conflicts: styles of different base models ({listed}); fix: name one with --base-model")
    return next(iter(bases), (DEFAULT_BASE, None))


def functional_lines(findings: FunctionalFindings) -> list[str]:
    """The table for people, and what is worth a thought."""
    names = {each: f"{each.first} {each.weights[0]} – {each.second} {each.weights[1]}" for each in findings.pairs}
    width = max(len(name) for name in names.values())
    columns = ("cosine", "unsummed", "1st kept", "2nd kept", "strength")
    lines = [f"on {findings.base.name}:", f"{'pair':<{width}}" + "".join(f"{column:>12}" for column in columns)]
    for pair, name in names.items():
        if not pair.points:
            lines.append(f"{name:<{width}}   one of them does nothing there")
            continue
        numbers = (pair.cosine, pair.additivity, *pair.kept)
        cells = "".join(f"{number:>12.3f}" for number in numbers)
        lines.append(f"{name:<{width}}{cells}{f'{pair.ratio:.2f} : 1':>12}")
    lines.append(
        "cosine of what they do to the noise prediction; unsummed: the share of both that is not the sum of each; "
        "kept: how far both go each one's own way, 1 as far as it alone"
    )
    lines += [f"! {warning}" for pair in findings.pairs if pair.points for warning in _warnings(pair)]
    if findings.base.random:
        lines.append("! the base model is made of random numbers: these figures show that it runs, and nothing else")
    return lines


def _warnings(pair: Additivity) -> list[str]:
    both, lines = f"{pair.first} and {pair.second}", []
    if pair.cosine <= AGAINST:
        lines.append(f"{both} pull the image apart (cosine {pair.cosine:.2f}): each takes from the other")
    if pair.additivity >= UNSUMMED:
        lines.append(
            f"{both} change what the other does ({pair.additivity:.0%} is not their sum): expect a third style"
        )
    for name, kept in zip((pair.first, pair.second), pair.kept, strict=True):
        if kept < EATEN:
            lines.append(f"{name} keeps {max(kept, 0):.0%} of its effect in {both}: raise its weight, or try composite")
    return lines


def functional_json(findings: FunctionalFindings) -> dict[str, Any]:
    """Everything, for machines; what is infinite is null."""
    return {
        "base": findings.base.name,
        "base_sha256": findings.base.sha256,
        "base_random": findings.base.random,
        "pairs": [_pair_json(pair) for pair in findings.pairs],
    }


def _pair_json(pair: Additivity) -> dict[str, Any]:
    content: dict[str, Any] = {**dataclasses.asdict(pair), "points": [_finite(vars(point)) for point in pair.points]}
    if not pair.points:
        return content
    means = {"cosine": pair.cosine, "additivity": pair.additivity, "kept": pair.kept, "ratio": pair.ratio}
    return {**content, **_finite(means)}


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no infinity."""
    return {key: None if value == math.inf else value for key, value in values.items()}
