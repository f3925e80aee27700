"""`merge`: several adapters as one file, and what is left of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from brushset.cli.adapter_sources import read_parts
from brushset.cli.adapters import Writing
from brushset.cli.guard import listen, print_event, stdout
from brushset.cli.options import Options
from brushset.files import shown
from brushset.paths import RunsDir

if TYPE_CHECKING:
    from brushset.lora.merge.mix import Part
    from brushset.lora.merge.write import Merge

Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="STYLE|FILE[:WEIGHT]…",
        help="Adapters and how strong: anime:0.6 file.safetensors:0.4; apart by part: anime:0.6,text=0.3,up=0.8,up3=0.",
    ),
]
MethodName = Annotated[
    str,
    typer.Option(
        "--method",
        metavar="concat|weighted|svd|ties|dare",
        help="concat and weighted are the exact sum; the others are cut to --rank.",
    ),
]
Rank = Annotated[int | None, typer.Option(help="Of svd, ties, dare; default: the largest that goes in.")]
Density = Annotated[
    float | None, typer.Option(help="Share of the entries kept: ties (default 0.2) by size, dare (0.5) at random.")
]
Normalize = Annotated[bool, typer.Option("--normalize", help="Scale the weights so that they sum to 1.")]
Dtype = Annotated[
    str, typer.Option(metavar="float|fp16|bf16", help="Of the file; fp16 is half as large and moves ΔW by 2e-4.")
]


@dataclass(frozen=True)
class MergeAsk:
    """What `merge` was told besides the adapters."""

    method: str = "concat"
    rank: int | None = None
    density: float | None = None
    normalize: bool = False
    dtype: str = "float"


def merge_files(options: Options, sources: Sequence[str], ask: MergeAsk, writing: Writing) -> None:
    """Writes a mix as one file, and tells what it holds of each adapter.

    Raises:
        UsageError: adapters or settings that do not go together, or a file that is there already.
        VerificationFailed: a broken file, or a result that is not what was meant.
    """
    from brushset.lora.merge.method import Wanted
    from brushset.lora.merge.mix import Recipe
    from brushset.lora.merge.weights import normalised
    from brushset.lora.merge.write import merge_adapters

    parts = read_parts(sources, RunsDir(options.runs_dir.absolute()))
    if ask.normalize:
        weights = normalised([part.weight for part in parts])
        parts = [dataclasses.replace(part, weight=weight) for part, weight in zip(parts, weights, strict=True)]
    target = _target(parts, ask.method, writing)
    recipe = Recipe(ask.method, Wanted(ask.rank, ask.density, options.seed or 0), ask.dtype)
    events, listener = listen(options, 1)
    try:
        merge = merge_adapters(parts, recipe, target, events)
    finally:
        if listener is not None:
            listener.close()
    if options.json:
        print_event("merge", merge_json(merge, parts, recipe.method))
        return
    for line in merge_lines(merge, parts, recipe.method):
        stdout.print(line, markup=False)


def merge_lines(merge: Merge, parts: Sequence[Part], method: str) -> list[str]:
    """The table for people."""
    from brushset.lora.merge.mix import METHODS, total_strength

    report = merge.report
    width = max(8, *(len(style.name) for style in report.styles))
    weights = max(8, *(len(style.weight) for style in report.styles))
    lines = [
        f"{'adapter':<{width}}  {'weight':<{weights}}  {'‖w·ΔW‖':>8}  {'energy kept':>11}  {'cosine':>7}  (asked for)"
    ]
    lines += [
        f"{style.name:<{width}}  {style.weight:<{weights}}  {style.norm:>8.3g}  {style.kept:>11.2%}  "
        f"{style.cosine:>7.3f}  ({style.wanted_cosine:.3f})"
        for style in report.styles
    ]
    lines.append(
        f"weights sum to {total_strength(parts):g}; the file is {report.strength:.2f} times as strong as the strongest alone"
    )
    if METHODS[method].exact:
        lines.append(f"{method}: rank {report.rank}, {report.modules} modules, the weighted sum to {report.error:.1g}")
    else:
        lines.append(
            f"{method}: rank {report.rank}, {report.modules} modules; the rank holds {merge.energy:.2%} of the method's "
            f"energy; from the weighted sum it is {report.error:.1%} away"
        )
    lines += [f"! {note}" for note in merge.notes]
    if merge.trigger:
        lines.append(f"trigger   {merge.trigger}")
    return [*lines, f"{shown(merge.path)}  {merge.path.stat().st_size / 1e6:.1f} MB"]


def merge_json(merge: Merge, parts: Sequence[Part], method: str) -> dict[str, Any]:
    """The same for machines."""
    from brushset.lora.merge.mix import total_strength

    return {
        "result": str(merge.path),
        "sha256": merge.sha256,
        "method": method,
        "weights_sum": total_strength(parts),
        "energy": merge.energy,
        "trigger": merge.trigger,
        "notes": list(merge.notes),
        **dataclasses.asdict(merge.report),
    }


def _target(parts: Sequence[Part], method: str, writing: Writing) -> Path:
    """The file to write; by default here, named after the adapters and the method. None of the sources."""
    default = f"{'+'.join(part.name.replace('/', '-') for part in parts)}-{method}.safetensors"
    out = writing.out or Path()
    file = out if out.suffix == ".safetensors" else out / default
    for part in parts:
        Writing(file, replace=writing.replace).target(part.adapter.path, suffix=method)
    return file
