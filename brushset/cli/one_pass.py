"""Several styles trained in one pass, in this process: which go together, and what a person sees of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from brushset.cli.options import Options
from brushset.cli.packing import failure_of
from brushset.cli.several import Screen, shared_bars
from brushset.engines import packs
from brushset.errors import BrushsetError
from brushset.log import EventLog, Listener
from brushset.paths import RunsDir
from brushset.pipeline import Stage
from brushset.session import Ask
from brushset.spec import StyleSpec
from brushset.together import run_styles_together


def choose_packed(specs: Mapping[str, StyleSpec]) -> list[str]:
    """The styles that one pass is for; none where fewer than two want it."""
    found = [name for name, spec in specs.items() if packs(spec.train.engine) and spec.train.pack]
    return found if len(found) > 1 else []


def run_in_one_pass(
    asks: Sequence[Ask], stages: Sequence[Stage[Any]], options: Options, also: Listener
) -> dict[str, BrushsetError]:
    """Takes every style through the stages asked for, trained together; returns the failures, which have been told.

    Raises:
        Interrupted: a signal; every run says so.
    """
    styles = [ask.key for ask in asks]
    last = asks[0].until
    count = [stage.name for stage in stages].index(last) + 1 if last else len(stages)
    with shared_bars(options) as bars:
        screen = Screen(styles, count, bars, as_json=options.json, also=also)
        events = {style: EventLog(screen.listener(style)) for style in styles}

        def tell(style: str, error: BrushsetError) -> None:
            fields = {"message": str(error), "exit_code": error.exit_code, "detail": error.detail}
            screen.failed(style, failure_of(style, fields))

        return run_styles_together(asks, stages, RunsDir(options.runs_dir.absolute()), events, tell)
