"""`configure --effective`: what a run will really use, asked from sd-scripts' own code, and whether that is the plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from brushset.cli.guard import print_event, stdout
from brushset.cli.options import Options
from brushset.cli.runs import run_styles
from brushset.cli.sources import style_names
from brushset.errors import UsageError
from brushset.kohya.effective import EFFECTIVE_FILE, ask_sd_scripts, describe, require_as_planned
from brushset.kohya.source import find_source
from brushset.load import load_style
from brushset.paths import RunsDir
from brushset.pipeline import Stage
from brushset.records import Captions, EngineConfig
from brushset.stage_records import load_record


def show_effective(stages: Sequence[Stage[Any]], options: Options) -> None:
    """Configures every style that is meant, then prints what sd-scripts makes of it.

    Raises:
        EnvironmentProblem: sd-scripts is not there.
        UsageError: the engine is not kohya, or sd-scripts would refuse the pair.
        VerificationFailed: sd-scripts would do something else than was planned; every difference is a line.
    """
    source = find_source()
    if not options.dry_run:
        run_styles(stages, options, until="configure")
    for name in style_names(options):
        run = RunsDir(options.runs_dir.absolute()).latest(name)
        planned = load_record(run, "configure") if run else None
        captions = load_record(run, "caption") if run else None
        if run is None or planned is None or captions is None:
            raise UsageError(f"{options.runs_dir}/{name}: not configured yet; fix: leave out --dry-run")
        spec = load_style(run.spec)
        if spec.train.engine != "kohya":
            raise UsageError(
                f"--effective asks sd-scripts, and {name} trains with the {spec.train.engine} engine; fix: --engine kohya"
            )
        effective = ask_sd_scripts(source, run, processes=spec.train.processes)
        if options.json:
            print_event("effective", {"style": name, **effective})
        else:
            table = Table(title=f"{name}: what sd-scripts {source.commit[:12]} will use", title_justify="left")
            table.add_column("what")
            table.add_column("value", overflow="fold")
            for line in describe(effective):
                table.add_row(escape(line.what), escape(line.value))
            stdout.print(table)
        require_as_planned(
            spec, EngineConfig.model_validate(planned.data), Captions.model_validate(captions.data), effective
        )
        if not options.json:
            stdout.print(f"as planned; all of it: {run.config / EFFECTIVE_FILE}", markup=False)
