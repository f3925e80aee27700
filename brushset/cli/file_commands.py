"""The commands that work on files a user has, whatever made them: LoRA files, and Kohya's TOMLs. They know no stage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from brushset.cli import adapters, conflicts, kohya_files, merge
from brushset.cli import export as packages
from brushset.cli.options import Options, takes_options
from brushset.kohya.import_style import ImportAsk

app = typer.Typer()


@app.command("inspect")
def inspect_command(
    context: typer.Context, file: adapters.Adapter, chart: adapters.Chart = None, as_json: adapters.AsJson = False
) -> None:
    """Tell what a LoRA file is: rank, alpha, modules, norms by block, trigger, training, hashes."""
    adapters.inspect(file, chart, as_json=as_json or context.obj.json)


@app.command("resize")
def resize_command(  # noqa: PLR0913, PLR0917  each is an option of its own
    context: typer.Context,
    file: adapters.Adapter,
    rank: adapters.Rank = None,
    energy: adapters.Energy = None,
    out: adapters.Out = None,
    replace: adapters.Replace = False,
    as_json: adapters.AsJson = False,
) -> None:
    """Write a LoRA file at a lower rank (SVD)."""
    writing = adapters.Writing(out, replace=replace)
    adapters.resize_file(file, rank, energy, writing, as_json=as_json or context.obj.json)


@app.command("metadata")
def metadata_command(  # noqa: PLR0913, PLR0917  each is an option of its own
    context: typer.Context,
    file: adapters.Adapter,
    edits: adapters.Edits = None,
    trigger: adapters.Trigger = None,
    title: adapters.Title = None,
    keep: adapters.Keep = None,
    out: adapters.Out = None,
    replace: adapters.Replace = False,
    as_json: adapters.AsJson = False,
) -> None:
    """Show a LoRA file's metadata, or write a copy with other metadata: edited, or stripped of captions."""
    writing, changes = adapters.Writing(out, replace=replace), adapters.named_edits(edits, trigger=trigger, title=title)
    adapters.metadata(file, changes, keep, writing, as_json=as_json or context.obj.json)


@app.command("merge")
@takes_options
def merge_command(  # noqa: PLR0913, PLR0917  each is an option of its own
    options: Options,
    context: typer.Context,
    sources: merge.Sources,
    method: merge.MethodName = "concat",
    rank: merge.Rank = None,
    density: merge.Density = None,
    normalize: merge.Normalize = False,
    dtype: merge.Dtype = "float",
    out: adapters.Out = None,
    replace: adapters.Replace = False,
) -> None:
    """Write several adapters as one file; tells what is left of each."""
    ask = merge.MergeAsk(method, rank, density, normalize, dtype)
    merge.merge_files(options.laid_over(context.obj), sources, ask, adapters.Writing(out, replace=replace))


@app.command("conflicts")
@takes_options
def conflicts_command(  # noqa: PLR0917  each is an option of its own
    options: Options,
    context: typer.Context,
    sources: conflicts.Sources,
    out: conflicts.Out = None,
    functional: conflicts.Functional = False,
    size: conflicts.Size = 512,
) -> None:
    """Predict which adapters get in each other's way, from the files alone; proposes weights. Warns, never fails."""
    ask = conflicts.ConflictsAsk(out, functional, size)
    conflicts.show_conflicts(options.laid_over(context.obj), sources, ask)


@app.command("verify-export")
def verify_export_command(context: typer.Context, folder: packages.Package, as_json: packages.AsJson = False) -> None:
    """Read a package again as each UI does: what would not apply, or would mislead, is named; exit code 6."""
    packages.verify_export(folder, as_json=as_json or context.obj.json)


@app.command("validate")
@takes_options
def validate_command(
    options: Options,
    context: typer.Context,
    files: Annotated[list[Path], typer.Argument(help="Kohya TOMLs, training or dataset; a pair is held together.")],
) -> None:
    """Say what each key of a Kohya TOML that you have will do, and what will silently go wrong."""
    kohya_files.validate(files, as_json=options.laid_over(context.obj).json)


@app.command("import")
@takes_options
def import_command(  # noqa: PLR0917  each is an option of its own
    options: Options,
    context: typer.Context,
    files: Annotated[list[Path], typer.Argument(help="A training TOML and its dataset TOML, in any order.")],
    name: Annotated[str | None, typer.Option(help="Name of the style; default: output_name.")] = None,
    trigger: Annotated[str | None, typer.Option(help="Word that calls the style.")] = None,
    out: Annotated[Path | None, typer.Option(help="Style file to write; default: styles/NAME.toml.")] = None,
) -> None:
    """Make a style file from a pair of Kohya TOMLs that you have."""
    ask = ImportAsk(name, trigger)
    kohya_files.import_files(files, ask, out=out, as_json=options.laid_over(context.obj).json)
