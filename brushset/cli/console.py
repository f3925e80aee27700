"""What a person sees of a run: a bar over the stages with one for training steps below it, or plain lines where there
is no terminal. Listens to events; writes to stderr, so that stdout stays free for what was asked for.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

_PLAIN_EVERY_S = 15.0


class ConsoleListener:
    """Turns events into bars and lines. `stages` is how many a run has. One of several at once puts its style before
    each line, and its bars among those that all share.
    """

    def __init__(self, console: Console, stages: int, *, one_of: str = "", shared: Progress | None = None) -> None:
        self._console = console
        self._stages = stages
        self._one_of = one_of
        self._shared = shared
        self._style = ""
        self._last_plain = 0.0
        self._bars: Progress | None = None
        self._stage_bar: TaskID | None = None
        self._inner_bar: TaskID | None = None

    def __call__(self, event: str, fields: Mapping[str, object]) -> None:
        """Shows one event; unknown ones are for machines only."""
        handler = getattr(self, f"_on_{event}", None)
        if handler is not None:
            handler(fields)

    def close(self) -> None:
        """Takes the bars down."""
        if self._shared is not None:
            for bar in (self._inner_bar, self._stage_bar):
                if bar is not None:
                    self._shared.remove_task(bar)
        elif self._bars is not None:
            self._bars.stop()
        self._bars = self._stage_bar = self._inner_bar = None

    def _on_run_start(self, fields: Mapping[str, object]) -> None:
        self.close()
        self._style = str(fields["style"])
        heading = "" if self._one_of else f"[bold]{escape(self._style)}[/bold]  "
        self._say(f"{heading}{escape(str(fields['folder']))}")
        self._say(f"  engine {escape(str(fields['engine']))}: {escape(str(fields['reason']))}")
        if self._console.is_terminal:
            self._bars = self._shared or make_bars(self._console)
            self._stage_bar = self._bars.add_task(self._style, total=self._stages, note="")
            self._bars.start()

    def _on_run_end(self, fields: Mapping[str, object]) -> None:
        self.close()
        if not fields["worked"]:
            self._say(f"  nothing to do: {escape(str(fields['folder']))} is up to date")

    def _on_run_state(self, fields: Mapping[str, object]) -> None:
        words = f": {fields['words']}" if fields["words"] else ""
        self._say(escape(f"{fields['name']}: {fields['state']} ({fields['executor']}){words}"))

    def _on_stage_start(self, fields: Mapping[str, object]) -> None:
        if self._bars is None:
            self._say(f"  {fields['stage']} …")
        elif self._stage_bar is not None:
            self._bars.update(self._stage_bar, note=str(fields["stage"]))

    def _on_stage_end(self, fields: Mapping[str, object]) -> None:
        self._drop_inner()
        self._advance()
        self._say(f"  [green]✓[/green] {fields['stage']}  {_seconds(fields['seconds'])}")

    def _on_stage_skip(self, fields: Mapping[str, object]) -> None:
        self._advance()
        self._say(f"  [dim]· {fields['stage']}  {escape(str(fields['reason']))}[/dim]")

    def _on_note(self, fields: Mapping[str, object]) -> None:
        self._say(f"    {escape(str(fields['text']))}")

    def _on_warning(self, fields: Mapping[str, object]) -> None:
        self._say(f"    [yellow]{escape(str(fields['text']))}[/yellow]")

    def _on_times(self, fields: Mapping[str, object]) -> None:
        self._say(f"  [dim]{escape(str(fields['text']))}[/dim]")

    def _on_progress(self, fields: Mapping[str, object]) -> None:
        note = ""
        if isinstance(rate := fields.get("per_s"), float) and rate < 1000:
            note = f"{rate:.2f}/s"
        if isinstance(eta := fields.get("eta_s"), float) and eta:
            note += f"  ETA {_seconds(eta)}"
        self._inner(str(fields["what"]), int(str(fields["done"])), int(str(fields["total"])), note)

    def _on_train_step(self, fields: Mapping[str, object]) -> None:
        note = f"loss {_number(fields.get('loss'), '.4f')}  {_number(fields.get('it_per_s'), '.2f')} it/s"
        if isinstance(eta := fields.get("eta_s"), int | float):
            note += f"  ETA {_seconds(eta)}"
        self._inner("training steps", int(str(fields["step"])), int(str(fields["total"])), note)

    def _on_validation(self, fields: Mapping[str, object]) -> None:
        trained = f", of trained images {_number(fields['train_loss'], '.4f')}" if fields.get("train_loss") else ""
        self._say(f"    epoch {fields['epoch']}: loss on held-out images {_number(fields['loss'], '.4f')}{trained}")

    def _inner(self, what: str, done: int, total: int, note: str) -> None:
        if self._bars is None:
            self._plain(what, done, total, note)
            return
        if self._inner_bar is None:
            self._inner_bar = self._bars.add_task("", total=total, note=note)
        whose = f"{escape(self._one_of)} " if self._one_of else "  "
        self._bars.update(self._inner_bar, description=f"{whose}{escape(what)}", completed=done, total=total, note=note)
        if done >= total:
            self._drop_inner()

    def _plain(self, what: str, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        if done >= total or now - self._last_plain > _PLAIN_EVERY_S:
            self._last_plain = now
            self._say(f"    {escape(what)} {done}/{total}  {escape(note)}".rstrip())

    def _drop_inner(self) -> None:
        if self._bars is not None and self._inner_bar is not None:
            self._bars.remove_task(self._inner_bar)
        self._inner_bar = None

    def _advance(self) -> None:
        if self._bars is not None and self._stage_bar is not None:
            self._bars.advance(self._stage_bar)

    def _say(self, text: str) -> None:
        whose = f"[bold]{escape(self._one_of)}[/bold]  " if self._one_of else ""
        self._console.print(whose + text, highlight=False, soft_wrap=True)


def make_bars(console: Console) -> Progress:
    """Bars with room for a note; gone from the terminal once they are stopped."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=True,
    )


def _seconds(value: object) -> str:
    seconds = float(str(value))
    return f"{seconds:.1f} s" if seconds < 100 else f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


def _number(value: object, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else "?"
