"""`conflicts`: what to expect of a mix before an image is made. It warns, and never fails for what it finds."""

from __future__ import annotations

import dataclasses
import math
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from brushset.cli.adapter_sources import read_parts, split_source
from brushset.cli.additivity import functional_json, functional_lines, try_pairs
from brushset.cli.guard import print_event, stdout
from brushset.cli.options import Options
from brushset.errors import UsageError
from brushset.files import shown, write_json
from brushset.paths import RunsDir

if TYPE_CHECKING:
    from brushset.lora.conflict import Conflicts, Figures
    from brushset.lora.merge.mix import Part

Sources = Annotated[list[str], typer.Argument(metavar="STYLE|FILE…", help="Two or more adapters.")]
Out = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Folder for conflicts.json and conflicts.png; default: in --runs-dir."),
]
Functional = Annotated[
    bool,
    typer.Option(
        "--functional",
        help="Also ask the base model (--base-model) what they do to each other: 50 UNet rows a pair, minutes on a CPU. "
        "Weights may be given, as anime:0.6.",
    ),
]
Size = Annotated[int, typer.Option(metavar="PX", help="With --functional: width and height; less is faster.")]
JSON_NAME, PICTURE_NAME = "conflicts.json", "conflicts.png"
_COLUMNS = ("cosine", "writes", "reads", "1st in 2nd", "2nd in 1st", "strength")


@dataclass(frozen=True)
class ConflictsAsk:
    """What `conflicts` was told besides the adapters."""

    out: Path | None = None
    functional: bool = False
    size_px: int = 512


def show_conflicts(options: Options, sources: Sequence[str], ask: ConflictsAsk) -> None:
    """Compares every pair; writes the figures and a heat map.

    Raises:
        UsageError: fewer than two adapters, of different widths, or weights, which it proposes.
    """
    from brushset.lora.conflict import find_conflicts
    from brushset.page.conflicts import draw_conflicts

    started = time.monotonic()
    runs = RunsDir(options.runs_dir.absolute())
    parts = read_parts(sources, runs)
    _require_comparable(parts, sources, weighable=ask.functional)
    folder = ask.out or runs.root / "_conflicts" / "+".join(part.name.replace("/", "-") for part in parts)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is a file; fix: --out with a folder")
    conflicts = find_conflicts({part.name: part.adapter.factors for part in parts})
    content, plain = conflicts_json(conflicts), [split_source(source)[0] for source in sources]
    lines = conflict_lines(conflicts, plain)
    if ask.functional:
        findings = try_pairs(options, parts, sources, ask.size_px)
        content["functional"] = functional_json(findings)
        lines += functional_lines(findings)
    seconds = round(time.monotonic() - started, 1)
    write_json(folder / JSON_NAME, content)
    draw_conflicts(conflicts.pairs, folder / PICTURE_NAME)
    if options.json:
        print_event("conflicts", {"folder": str(folder), "seconds": seconds, **content})
        return
    for line in [*lines, f"{seconds:g} s; {shown(folder / JSON_NAME)}, {PICTURE_NAME}"]:
        stdout.print(line, markup=False)


def conflict_lines(conflicts: Conflicts, sources: Sequence[str]) -> list[str]:
    """The table for people, what is worth a thought, and weights to begin with."""
    pairs = {f"{pair.first} – {pair.second}": pair.whole for pair in conflicts.pairs}
    width = max(len(name) for name in pairs)
    lines = [f"{'pair':<{width}}" + "".join(f"{column:>12}" for column in _COLUMNS)]
    for name, each in pairs.items():
        numbers = (each.cosine, each.output_overlap, each.input_overlap, each.first_in_second, each.second_in_first)
        cells = "".join(f"{_rounded(number):>12.3f}" for number in numbers)
        lines.append(f"{name:<{width}}{cells}{f'{each.ratio:.2f} : 1':>12}")
    lines.append(
        "writes, reads: overlap of output and input directions above chance; in: share of energy in its spaces"
    )
    lines += [f"! {warning}" for warning in conflicts.warnings()] or ["nothing stands out"]
    lines.append("equally strong at (block by block in the JSON):")
    proposed = zip(sources, conflicts.weights.values(), strict=True)
    apart = all(norms.get("text") and norms.get("unet") for norms in conflicts.norms.values())
    weights = " ".join(_pasted(source, weights, apart=apart) for source, weights in proposed)
    return [
        *lines,
        f"  orchestrate.py merge {weights}    or inference --loras with the same",
        "a prediction from the files alone, not yet held against images",
    ]


def _rounded(number: float) -> float:
    """To three digits, and no sign on what rounds to nothing."""
    return round(number, 3) + 0.0


def conflicts_json(conflicts: Conflicts) -> dict[str, Any]:
    """Everything, for machines; infinite ratios are null."""
    return {
        "pairs": [
            {
                "first": pair.first,
                "second": pair.second,
                "blocks": {block: _figures_json(figures) for block, figures in pair.blocks.items()},
            }
            for pair in conflicts.pairs
        ],
        "norms": conflicts.norms,
        "weights": conflicts.weights,
        "warnings": conflicts.warnings(),
    }


def _figures_json(figures: Figures) -> dict[str, Any]:
    return {**dataclasses.asdict(figures), "ratio": figures.ratio if math.isfinite(figures.ratio) else None}


def _pasted(source: str, weights: Mapping[str, float], *, apart: bool) -> str:
    """An adapter with the weight proposed, as `merge` takes it; the text encoder's apart where all have one."""
    text = f"{source}:{weights['unet']:.2f},text={weights['text']:.2f}" if apart else f"{source}:{weights['all']:.2f}"
    return shlex.quote(text)


def _require_comparable(parts: Sequence[Part], sources: Sequence[str], *, weighable: bool) -> None:
    if len(parts) < 2:
        raise UsageError(f"conflicts: {len(parts)} adapter; two or more are compared, such as anime watercolor")
    weighted = [text for text, part in zip(sources, parts, strict=True) if part.weight.told() != "1"]
    if weighted and not weighable:
        raise UsageError(
            f"conflicts: {', '.join(weighted)}: files are compared without weights, and weights proposed; fix: names "
            "alone, or --functional, which tries these weights"
        )
    widths = {part.name: part.adapter.architecture.name for part in parts}
    if len(set(widths.values())) > 1:
        listed = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise UsageError(
            f"conflicts: the adapters are for models of different widths ({listed}); fix: compare those of one base"
        )
