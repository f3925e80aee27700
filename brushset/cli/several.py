"""`--parallel N`: what several styles at once need before they start, and what a person sees of them.

Children and their isolation are `brushset.cli.packing`'s; here are the slots (a GPU in turn and a share of the cores
each), the warning where they will not fit, MPS where it was asked for, and a bar or a prefix a style.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from rich.progress import Progress

from brushset.cli.console import ConsoleListener, make_bars
from brushset.cli.devices import parse_gpus, slot_environment
from brushset.cli.guard import print_event, stderr, tell
from brushset.cli.mps import mps_environment
from brushset.cli.options import Options
from brushset.cli.packing import Pack, child_command
from brushset.errors import BrushsetError, UsageError
from brushset.log import EventLog
from brushset.paths import RunsDir
from brushset.protocols import Emit
from brushset.spec import StyleSpec


@dataclass(frozen=True)
class PackedLeg:
    """Which styles go, and what each is to do: a stretch of so many stages."""

    styles: tuple[str, ...]
    until: str
    force: str | None
    stages: int


class Screen:
    """Shows what the children say: a bar a style, plain lines that begin with the style, or JSON Lines."""

    def __init__(self, leg: PackedLeg, bars: Progress | None, *, as_json: bool) -> None:
        self._leg, self._bars, self._as_json = leg, bars, as_json
        self._styles: dict[str, ConsoleListener] = {}
        self._events = EventLog(self._show)  # one at a time: the children's threads all come here

    def heard(self, style: str, event: str, fields: Mapping[str, object]) -> None:
        """An event of one style's child."""
        self._events(event, **{**fields, "style": style})

    def failed(self, style: str, error: BrushsetError) -> None:
        """One style's child failed."""
        if style in self._styles:
            self._styles[style].close()
        tell(error, as_json=self._as_json)

    def _show(self, event: str, fields: Mapping[str, object]) -> None:
        if self._as_json:
            print_event(event, fields)
            return
        style = str(fields["style"])
        if style not in self._styles:
            label = style.ljust(max(map(len, self._leg.styles)))
            self._styles[style] = ConsoleListener(stderr, self._leg.stages, one_of=label, shared=self._bars)
        self._styles[style](event, fields)


def run_packed(leg: PackedLeg, options: Options, emit: Emit) -> dict[str, BrushsetError]:
    """Takes every style through a leg, several at once; returns the failures, which have been told.

    Raises:
        Interrupted: a signal; nothing that was started is left.
    """
    gpus, at_once = parse_gpus(options.gpus), min(options.parallel, len(leg.styles))
    commands = {style: child_command(options, style, until=leg.until, force=leg.force) for style in leg.styles}
    with _bars(options) as bars, ExitStack() as stack:
        mps = stack.enter_context(mps_environment(emit)) if options.mps else {}
        environ = {**os.environ, **mps}
        slots = [slot_environment(slot, at_once, gpus=gpus, environ=environ) for slot in range(at_once)]
        screen = Screen(leg, bars, as_json=options.json)
        return Pack(RunsDir(options.runs_dir.absolute()), screen).run(commands, slots)


def refuse_spread(spec: StyleSpec) -> None:
    """Raises UsageError for a style that wants several GPUs for itself, where styles share them."""
    if spec.train.processes > 1:
        raise UsageError(
            f"{spec.name}: [train] processes = {spec.train.processes} spreads one style over several GPUs, --parallel puts "
            "several styles on one; fix: leave one of the two out"
        )


@contextmanager
def _bars(options: Options) -> Iterator[Progress | None]:
    """The bars that all styles share, where there is a terminal."""
    if options.json or not stderr.is_terminal:
        yield None
        return
    with make_bars(stderr) as bars:
        yield bars
