"""What a sweep is asked for on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from brushset.errors import UsageError
from brushset.sweeps.space import SEED, Point, draw_points, multiply, parse_grid, parse_ranges, read_list

OWN_FLAGS = {
    "--grid": True, "--list": True, "--random": True, "--range": True, "--seeds": True, "--name": True, "--yes": False,
    "--halving": False, "--style": True, "--parallel": True, "--executor": True, "--gpus": True, "--json": False,
    "--mps": False,
}  # fmt: skip
"""Flags that are of no use to a run of the sweep by itself → whether a value follows."""


@dataclass(frozen=True)
class SweepAsk:
    """What the options of `sweep` say."""

    grid: Annotated[
        list[str],
        typer.Option("--grid", metavar="section.key=A,B,C", help="Values to try; of several every combination."),
    ] = field(default_factory=list)
    listed: Annotated[
        Path | None,
        typer.Option(
            "--list", metavar="FILE", help="A run a row: .csv (settings as columns), .jsonl, or .toml with [[runs]]."
        ),
    ] = None
    drawn: Annotated[
        int | None, typer.Option("--random", min=1, metavar="N", help="So many points, drawn from --range.")
    ] = None
    ranges: Annotated[
        list[str],
        typer.Option(
            "--range", metavar="section.key=A..B[:log]", help="Bounds; :log draws every octave as often; repeats."
        ),
    ] = field(default_factory=list)
    seeds: Annotated[
        int, typer.Option(min=1, metavar="N", help="Each of them with so many seeds, from [train] seed on.")
    ] = 1
    name: Annotated[str | None, typer.Option("--name", help="Of the sweep's folder; default: styles and a digest.")] = (
        None
    )
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before it starts.")] = False
    halving: Annotated[
        bool, typer.Option("--halving", help="Train all briefly, the best third three times as long, and so on.")
    ] = False

    def points(self, first_seed: int) -> list[Point]:
        """Every point that is asked for; numbers are drawn by `first_seed`, so that the same command draws the same.

        Raises:
            UsageError: everything that is wrong, a line each.
        """
        if bool(self.drawn) != bool(self.ranges):
            raise UsageError("--random and --range go together: --random 20 --range train.unet_lr=1e-5..5e-4:log")
        if not (self.grid or self.listed or self.drawn or self.seeds > 1):
            raise UsageError("nothing varies; fix: --grid, --list, --random with --range, or --seeds")
        seeds: list[Point] = [{SEED: first_seed + number} for number in range(self.seeds)] if self.seeds > 1 else []
        points = multiply(
            parse_grid(self.grid) if self.grid else [],
            read_list(self.listed) if self.listed else [],
            draw_points(parse_ranges(self.ranges), self.drawn, first_seed) if self.drawn else [],
            seeds,
        )
        if self.halving:
            self._refuse_with_halving(points)
        return points

    def _refuse_with_halving(self, points: Sequence[Point]) -> None:
        keys = {key for point in points for key in point}
        if self.seeds > 1 or SEED in keys:
            raise UsageError(
                "--halving compares settings, not luck; fix: no seeds with it, and several for what it leaves"
            )
        if own := sorted(keys & {"train.epochs", "train.max_steps", "train.target_steps"}):
            raise UsageError(
                f"--halving: it is {', '.join(own)} that halving varies; fix: --set one value, or no --halving"
            )
