"""`--dry-run` and `doctor`: what would be done, and whether it would work here. Neither touches a thing."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from brushset.cli.doctor import examine
from brushset.cli.guard import print_event, stdout
from brushset.cli.options import Options
from brushset.engines import planned_command, sd_scripts_state
from brushset.errors import EnvironmentProblem
from brushset.files import toml_text
from brushset.kohya.render import render_dataset, render_training
from brushset.listing import list_source_images
from brushset.load import spec_text
from brushset.paths import PROJECT
from brushset.prepare.holdout import count_heldout
from brushset.spec import StyleSpec
from brushset.stages.configure import choose_repeats


def show_plan(spec: StyleSpec, engine_reason: str, *, stages: Sequence[str], until: str | None) -> None:
    """Prints the resolved spec, the TOML pair and the command that a run would use."""
    last = stages.index(until) if until in stages else len(stages) - 1
    folder = spec.images_dir(PROJECT)
    say = _plain
    say(f"style     {spec.name} (trigger {spec.trigger})")
    say(f"images    {folder}{'' if folder.is_dir() else '  (not there yet)'}")
    say(f"base      {spec.base.model}")
    say(f"engine    {spec.train.engine}: {engine_reason}")
    say(f"stages    {' → '.join(stages[: last + 1])}")
    command = planned_command(spec)
    say(f"command   {shlex.join(command) if command else 'none: the native engine trains in this process'}")
    repeats, why = _planned_repeats(spec, folder)
    say(f"length    {why}")
    for title, text in (
        ("spec.toml", spec_text(spec)),
        ("config/dataset.toml", toml_text(render_dataset(spec, repeats))),
        ("config/training.toml", toml_text(render_training(spec))),
    ):
        say(f"\n# ---- {title}\n{text.rstrip()}")


def _planned_repeats(spec: StyleSpec, folder: Path) -> tuple[int, str]:
    """As far as file names tell: the audit may leave some out."""
    found = len(list_source_images(folder)) if folder.is_dir() else 0
    held = count_heldout(found, spec.dataset)
    if not found and spec.train.repeats is None and spec.train.max_steps is None:
        return 1, "repeats follow from the number of images, once they are there"
    repeats, why = choose_repeats(spec.train, max(1, found - held))
    return repeats, f"{why}; of {found} images about {held} would be held out" if held else why


def show_doctor(options: Options) -> None:
    """Prints every check.

    Raises:
        EnvironmentProblem: a run would fail here; each reason is a line.
    """
    findings = examine(options.runs_dir, sd_scripts_state)
    if options.json:
        for finding in findings:
            print_event("check", {"what": finding.what, "found": finding.found, "ok": finding.ok, "fix": finding.fix})
    else:
        table = Table("", "check", "found", "fix")
        for finding in findings:
            table.add_row("✓" if finding.ok else "✗", finding.what, finding.found, finding.fix)
        stdout.print(table)
    wrong = [f"{finding.what}: {finding.found}; fix: {finding.fix}" for finding in findings if not finding.ok]
    if wrong:
        raise EnvironmentProblem.of_many(wrong)


def _plain(text: str) -> None:
    stdout.print(text, markup=False)
