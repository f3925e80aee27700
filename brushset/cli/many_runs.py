"""The commands for many runs: sweep, queue, and what looks after runs by their folders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from brushset.cli import queue, status
from brushset.cli.lookafter import clean, control, find, logs
from brushset.cli.options import Options, takes_options
from brushset.cli.sweeps.ask import SweepAsk
from brushset.cli.sweeps.command import sweep
from brushset.pipeline import Stage

YesToAll = Annotated[bool, typer.Option("--yes", help="Also others that the same process trains in one pass.")]


def add_commands(app: typer.Typer, stages: Sequence[Stage[Any]]) -> None:
    """Adds them to the command line; `stages` are what a run goes through."""

    @app.command("sweep")
    @takes_options
    def sweep_command(options: Options, ask: SweepAsk, context: typer.Context) -> None:
        """Train many variants of a style: a grid, a list, or random points; ranked, with what each setting did."""
        sweep(stages, options.laid_over(context.obj), ask)

    @app.command("status")
    @takes_options
    def status_command(
        options: Options, context: typer.Context, watch: status.Watch = False, of_sweep: status.OfSweep = None
    ) -> None:
        """Every run: how far it came, where, and why it does not go on; from the run folders alone."""
        names = [stage.name for stage in stages]
        status.show(options.laid_over(context.obj), names, watch=watch, sweep=of_sweep)

    _add_control(app, stages)
    app.add_typer(_queue_commands(stages), name="queue")


def _add_control(app: typer.Typer, stages: Sequence[Stage[Any]]) -> None:
    """Commands on single runs."""

    @app.command("logs")
    @takes_options
    def logs_command(  # noqa: PLR0917  each is an option of its own
        options: Options,
        context: typer.Context,
        run: find.Which,
        what: logs.What = None,
        lines: logs.Lines = 40,
        follow: logs.Follow = False,
    ) -> None:
        """The end of what a run's newest process said; -f goes on."""
        logs.show_logs(options.laid_over(context.obj), run, what, lines, follow=follow)

    @app.command("cancel")
    @takes_options
    def cancel_command(options: Options, context: typer.Context, runs: find.Several, yes: YesToAll = False) -> None:
        """Stop whoever works on these runs, wherever, their states saved; nobody starts on them until resume."""
        control.cancel_runs(stages, options.laid_over(context.obj), runs, yes=yes)

    @app.command("resume")
    @takes_options
    def resume_command(options: Options, context: typer.Context, runs: find.Several) -> None:
        """Take these runs on to their end, by the executor that they name."""
        control.resume_runs(stages, options.laid_over(context.obj), runs)

    @app.command("clean")
    @takes_options
    def clean_command(
        options: Options, context: typer.Context, yes: clean.Yes = False, pictures: clean.Pictures = False
    ) -> None:
        """Show what could go, and its size; never weights, captions, or a newest run's results."""
        clean.clean(options.laid_over(context.obj), yes=yes, pictures=pictures)


def _queue_commands(stages: Sequence[Stage[Any]]) -> typer.Typer:
    """`queue …`."""
    app = typer.Typer(help="Commands for the night, kept on disk: they go on after a reboot.", no_args_is_help=True)
    app.add_typer(_adding_commands(stages), name="add")

    @app.command("list")
    @takes_options
    def list_command(options: Options, context: typer.Context) -> None:
        """What waits, what runs, what failed."""
        queue.list_queue(options.laid_over(context.obj))

    @app.command("remove")
    @takes_options
    def remove_command(
        options: Options, context: typer.Context, numbers: Annotated[list[int], typer.Argument(metavar="NUMBER…")]
    ) -> None:
        """Take entries out."""
        queue.remove_from_queue(options.laid_over(context.obj), numbers)

    @app.command("run")
    @takes_options
    def run_command(options: Options, context: typer.Context) -> None:
        """Work through the queue; goes on after a failure, and ends with 7 then."""
        queue.run_queue(options.laid_over(context.obj))

    return app


def _adding_commands(stages: Sequence[Stage[Any]]) -> typer.Typer:
    """`queue add …`."""
    app = typer.Typer()

    @app.callback(invoke_without_command=True)
    @takes_options
    def add_command(options: Options, context: typer.Context) -> None:
        """Put the main command with these options at the queue's end, for one or several styles; or `all`, or a `sweep`."""
        context.obj = options.laid_over(context.obj)
        if context.invoked_subcommand is None:
            queue.add_command(stages, context.obj)

    @app.command("all")
    @takes_options
    def add_all_command(options: Options, context: typer.Context) -> None:
        """The whole pipeline, for all styles unless some are named."""
        queue.add_command(stages, options.laid_over(context.obj), ["all"])

    @app.command("sweep")
    @takes_options
    def add_sweep_command(options: Options, ask: SweepAsk, context: typer.Context) -> None:
        """A sweep; its plan and cost are shown now."""
        queue.add_sweep(stages, options.laid_over(context.obj), ask)

    return app
