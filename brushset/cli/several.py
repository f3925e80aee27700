"""`--parallel N`: what several styles at once need before they start, and what a person sees of them.

Children and their isolation are `brushset.cli.packing`'s; here are the slots (a GPU in turn and a share of the cores
each), the warning where they will not fit, MPS where it was asked for, and a bar or a prefix a style.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
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
from brushset.log import EventLog, Listener
from brushset.paths import RunsDir
from brushset.protocols import Emit
from brushset.spec import StyleSpec


@dataclass(frozen=True)
class ParallelLeg:
    """Which styles go, and what each is to do: a stretch of so many stages."""

    styles: tuple[str, ...]
    until: str
    force: str | None
    stages: int


class Screen:
    """Shows what several styles say: a bar a style, plain lines that begin with the style, or JSON Lines. `also` hears it
    too.
    """

    def __init__(
        self, styles: Sequence[str], stages: int, bars: Progress | None, *, as_json: bool, also: Listener
    ) -> None:
        self._width = max(map(len, styles))
        self._stages, self._bars, self._as_json = stages, bars, as_json
        self._shown: dict[str, ConsoleListener] = {}
        self._events = EventLog(self._show, also)  # one at a time: the children's threads all come here

    def heard(self, style: str, event: str, fields: Mapping[str, object]) -> None:
        """An event of one style."""
        self._events(event, **{**fields, "style": style})

    def listener(self, style: str) -> Listener:
        """What hears one style's events."""
        return lambda event, fields: self.heard(style, event, fields)

    def failed(self, style: str, error: BrushsetError) -> None:
        """One style failed."""
        if style in self._shown:
            self._shown[style].close()
        tell(error, as_json=self._as_json)

    def _show(self, event: str, fields: Mapping[str, object]) -> None:
        if self._as_json:
            print_event(event, fields)
            return
        style = str(fields["style"])
        if style not in self._shown:
            label = style.ljust(self._width)
            self._shown[style] = ConsoleListener(stderr, self._stages, one_of=label, shared=self._bars)
        self._shown[style](event, fields)


def run_parallel(leg: ParallelLeg, options: Options, emit: Emit, also: Listener) -> dict[str, BrushsetError]:
    """Takes every style through a leg, several at once; returns the failures, which have been told. `also` hears what the
    children say.

    Raises:
        Interrupted: a signal; nothing that was started is left.
    """
    gpus, at_once = parse_gpus(options.gpus), min(options.parallel, len(leg.styles))
    commands = {style: child_command(options, style, until=leg.until, force=leg.force) for style in leg.styles}
    with shared_bars(options) as bars, ExitStack() as stack:
        mps = stack.enter_context(mps_environment(emit)) if options.mps else {}
        environ = {**os.environ, **mps}
        slots = [slot_environment(slot, at_once, gpus=gpus, environ=environ) for slot in range(at_once)]
        screen = Screen(leg.styles, leg.stages, bars, as_json=options.json, also=also)
        return Pack(RunsDir(options.runs_dir.absolute()), screen).run(commands, slots)


def refuse_spread(spec: StyleSpec) -> None:
    """Raises UsageError for a style that wants several GPUs for itself, where styles share them."""
    if spec.train.processes > 1:
        raise UsageError(
            f"{spec.name}: [train] processes = {spec.train.processes} spreads one style over several GPUs, --parallel puts "
            "several styles on one; fix: leave one of the two out"
        )


@contextmanager
def shared_bars(options: Options) -> Iterator[Progress | None]:
    """The bars that all styles share, where there is a terminal."""
    if options.json or not stderr.is_terminal:
        yield None
        return
    with make_bars(stderr) as bars:
        yield bars
