#!/usr/bin/env python
"""The front door: `python orchestrate.py --style cartoon` takes a folder of images to a LoRA that is proven to work.

The composition root: the one file that sees every room; nothing imports it. It holds the commands and the order of
the stages; what a command does stands in the room it opens.
"""

from __future__ import annotations

import sys

try:
    from pathlib import Path
    from typing import Annotated, Any

    import typer

    from brushset.cli import (
        adapters,
        captions,
        compare,
        effective,
        file_commands,
        guard,
        many_runs,
        menu,
        models,
        plan,
        rework,
        run_one,
        runs,
    )
    from brushset.cli import audit as audits
    from brushset.cli import export as packages
    from brushset.cli.inference import command as inference
    from brushset.cli.options import Options, spread_values, takes_options
    from brushset.pipeline import Stage
    from brushset.stages import audit, caption, configure, convert, preprocess, report, train
    from eval import stage as evaluate
    from eval.choose import stage as choose
    from webui_export import stage as export
except ModuleNotFoundError as error:
    fix = f"pip install uv && uv run orchestrate.py {' '.join(sys.argv[1:])}"
    sys.stderr.write(f"error: {error.name} is not installed; fix: {fix.rstrip()}\n")
    sys.exit(4)

STAGES: tuple[Stage[Any], ...] = (
    audit.STAGE,
    preprocess.STAGE,
    caption.STAGE,
    configure.STAGE,
    train.STAGE,
    choose.STAGE,
    convert.STAGE,
    evaluate.STAGE,
    export.STAGE,
    report.STAGE,
)
app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    cls=menu.Menu,
    context_settings={"max_content_width": menu.WIDTH},
    help="Style LoRAs for Stable Diffusion 1.5: from a folder of images to adapters that are proven to work.",
    epilog="Any other setting: --set section.key=value; sections and defaults stand in brushset/spec/.",
)


@app.callback(invoke_without_command=True)
@takes_options
def run(options: Options, context: typer.Context) -> None:
    """The whole pipeline for the styles named."""
    context.obj = options
    if context.invoked_subcommand is None:
        if options == Options():
            typer.echo(context.get_help())
            raise typer.Exit(2)
        runs.run_styles(STAGES, options)


@app.command("all")
@takes_options
def run_all(options: Options, context: typer.Context) -> None:
    """The whole pipeline, for all styles unless some are named."""
    runs.run_styles(STAGES, options.laid_over(context.obj))


@app.command("audit")
@takes_options
def audit_command(
    options: Options,
    context: typer.Context,
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="DIR", help="Folders of images; needs no style.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for audit.json and the page.")] = None,
) -> None:
    """Look at folders of images: will they do, what is to be changed, what will the trainer see. Reads only."""
    audits.audit_folders(folders or (), options.laid_over(context.obj), out)


def _until(stage: Stage[Any], what: str) -> None:
    """Adds a command that runs the pipeline up to `stage`."""

    def command(options: Options, context: typer.Context) -> None:
        runs.run_styles(STAGES, options.laid_over(context.obj), until=stage.name)

    command.__doc__ = what
    app.command(stage.name)(takes_options(command))


def _on_run(stage: Stage[Any], what: str) -> None:
    """Adds a command that does one stage on a run that is trained already."""

    def command(options: Options, context: typer.Context) -> None:
        rework.work_on_run(STAGES, options.laid_over(context.obj), stage)

    command.__doc__ = what
    app.command(stage.name)(takes_options(command))


_until(preprocess.STAGE, "Audit, then prepare the images: upright, RGB, large enough.")


@app.command("caption")
@takes_options
def caption_command(
    options: Options,
    context: typer.Context,
    export_to: Annotated[
        Path | None, typer.Option("--export", metavar="FILE.csv", help="Write one style's captions for a spreadsheet.")
    ] = None,
    import_from: Annotated[
        Path | None, typer.Option("--import", metavar="FILE.csv", help="Take them back as your edits.")
    ] = None,
) -> None:
    """… then caption them, trigger first; or edit the captions in a spreadsheet."""
    asked = options.laid_over(context.obj)
    if import_from is not None:
        captions.import_captions(STAGES, asked, import_from)
    if export_to is not None:
        captions.export_captions(STAGES, asked, export_to)
    if import_from is None and export_to is None:
        runs.run_styles(STAGES, asked, until=caption.STAGE.name)


@app.command("configure")
@takes_options
def configure_command(
    options: Options,
    context: typer.Context,
    effective_too: Annotated[
        bool, typer.Option("--effective", help="Then print what sd-scripts' own code makes of it.")
    ] = False,
) -> None:
    """… then write Kohya's dataset and training TOML."""
    asked = options.laid_over(context.obj)
    if effective_too:
        effective.show_effective(STAGES, asked)
    else:
        runs.run_styles(STAGES, asked, until=configure.STAGE.name)


_until(train.STAGE, "… then train.")
_on_run(choose.STAGE, "Look at the newest run's checkpoints at several weights, and choose one.")


@app.command("convert")
@takes_options
def convert_command(  # noqa: PLR0913, PLR0917  each is an option of its own
    options: Options,
    context: typer.Context,
    file: adapters.MaybeAdapter = None,
    to: adapters.To = None,
    out: adapters.Out = None,
    verify: adapters.Verify = True,
    replace: adapters.Replace = False,
) -> None:
    """Convert FILE from any form to Kohya's or diffusers'; without FILE, the newest run's adapter for diffusers."""
    asked = options.laid_over(context.obj)
    if file is None:
        adapters.refuse_without_file(to, out)
        rework.work_on_run(STAGES, asked, convert.STAGE)
    else:
        adapters.convert_file(file, to, adapters.Writing(out, replace=replace), verify=verify, as_json=asked.json)


_on_run(evaluate.STAGE, "Sample the grid with the newest run's adapter, and score it.")


@app.command("export")
@takes_options
def export_command(  # noqa: PLR0917  each is an option of its own
    options: Options,
    context: typer.Context,
    to: packages.To = None,
    install: packages.Install = None,
    replace: packages.Replace = False,
    push_to_hub: packages.Push = None,
) -> None:
    """Pack the newest run's adapter for the web UIs, proven to apply; into a UI's folder, or onto the hub, if asked."""
    ask = packages.ExportAsk(tuple(to or ()), install, replace, push_to_hub)
    packages.export_run(STAGES, options.laid_over(context.obj), export.STAGE, ask)


_on_run(report.STAGE, "Write the newest run's report.html again.")


app.command("inference")(inference.inference_command)


@app.command("run-one")
@takes_options
def run_one_command(
    options: Options,
    context: typer.Context,
    folders: Annotated[list[Path], typer.Argument(metavar="RUN_DIR…", help="A folder below runs/<style>/.")],
    submission: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Take exactly this run to its end, on whichever machine; what every executor starts. Called again, it goes on."""
    run_one.run_some(STAGES, options.laid_over(context.obj), folders, submission)


@app.command("compare")
@takes_options
def compare_command(
    options: Options, context: typer.Context, sources: compare.Sources, out: compare.Out = None
) -> None:
    """Hold runs side by side: settings that differ, curves, the same prompts, scores with the difference's interval."""
    compare.compare_runs(options.laid_over(context.obj), sources, [stage.name for stage in STAGES], out)


@app.command("doctor")
@takes_options
def doctor_command(
    options: Options, context: typer.Context, file: adapters.MaybeAdapter = None, unet_only: adapters.UnetOnly = False
) -> None:
    """Check this machine: packages, device, disk, sd-scripts; or FILE: why a LoRA does nothing."""
    asked = options.laid_over(context.obj)
    if file is None:
        plan.show_doctor(asked)
    else:
        adapters.diagnose_file(file, unet_only=unet_only, as_json=asked.json)


@app.command("fetch-models")
@takes_options
def fetch_models_command(
    options: Options,
    context: typer.Context,
    styles: Annotated[list[str] | None, typer.Option("--for", metavar="STYLE", help="Style, or all; repeats.")] = None,
) -> None:
    """Fetch and check all weights that runs read, beforehand: base model, captioners, evaluation."""
    models.fetch_models(options.laid_over(context.obj), styles or ())


many_runs.add_commands(app, STAGES)
app.add_typer(file_commands.app)


def _spread_flags(argv: list[str]) -> tuple[str, ...]:
    """Flags that take several words; `convert --to` takes one, before its FILE."""
    return ("--prompts", "--prompts-file", "--loras", "--weights", "--replay", *(("--to",) if "export" in argv else ()))


def main() -> int:
    """Runs the command line; returns the exit code."""
    return guard.guarded(app, spread_values(sys.argv[1:], _spread_flags(sys.argv)))


if __name__ == "__main__":
    sys.exit(main())
