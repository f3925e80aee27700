"""What came of a sweep, from its run folders alone; runs/sweeps/<name>/report.html and report.json."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from brushset.cli.sweeps.ask import OWN_FLAGS
from brushset.cli.sweeps.members import label_of
from brushset.files import write_atomic, write_json
from brushset.manifest import RunManifest, read_manifest
from brushset.page.sweep import SweepPage, render_sweep, sweep_json
from brushset.paths import RunPaths, RunsDir
from brushset.stage_records import load_record, load_records
from brushset.sweeps.ledger import Entry, Sweep, load_sweep
from brushset.sweeps.ranking import Ranked, rank
from brushset.sweeps.scores import read_score
from brushset.sweeps.space import as_setting


@dataclass(frozen=True)
class Results:
    """A sweep and its runs, the best first."""

    sweep: Sweep
    ranked: Sequence[Ranked]
    smoke: bool


def read_results(runs: RunsDir, name: str) -> Results:
    """As far as its runs have come."""
    sweep = load_sweep(runs, name)
    several = len({entry.style for entry in sweep.entries}) > 1
    found, smoke = [], False
    for entry, run in zip(sweep.entries, sweep.runs(runs), strict=True):
        manifest = read_manifest(run)
        smoke |= manifest is not None and manifest.smoke
        found.append(_result(entry, run, manifest, entry.style if several else "", sweep.until))
    return Results(sweep, rank(found), smoke)


def write_report(runs: RunsDir, results: Results) -> Path:
    """The page and its JSON; returns the page's path."""
    folder = runs.sweep(results.sweep.name)
    page = SweepPage(
        name=results.sweep.name,
        argv=results.sweep.argv,
        varied=results.sweep.varied,
        rungs=results.sweep.rungs,
        runs=tuple(results.ranked),
        folders={each.run: f"../../{each.style}/{each.run.run_id}" for each in results.ranked},
        smoke=results.smoke,
        best_command=_best_command(results),
    )
    write_json(folder / "report.json", sweep_json(page))
    write_atomic(folder / "report.html", render_sweep(page))
    return folder / "report.html"


def _result(entry: Entry, run: RunPaths, manifest: RunManifest | None, style: str, until: str) -> Ranked:
    finished = load_record(run, until) is not None
    state = "finished" if finished else manifest.status if manifest else "gone"
    words = manifest.error.splitlines()[0] if manifest and manifest.error and not finished else ""
    label = label_of(style, entry.settings) or entry.style
    seconds = _seconds(run) if finished else None
    return Ranked(
        run,
        entry.style,
        label,
        entry.settings,
        entry.rung,
        state,
        words,
        seconds,
        read_score(run),
        run.report.is_file(),
    )


def _seconds(run: RunPaths) -> float:
    """Of the stages that this run did itself."""
    records = load_records(run).values()
    return sum(record.ended_at - record.started_at for record in records if not record.taken_from)


def _best_command(results: Results) -> str:
    """The plain command that makes the best run the style's newest one: it is done, so nothing is done again."""
    best = next(
        (each for each in results.ranked if each.value is not None and each.rung == results.sweep.rungs - 1), None
    )
    if best is None:
        return ""
    settings = [word for key, value in best.settings.items() for word in ("--set", as_setting(key, value))]
    return shlex.join(["uv", "run", "orchestrate.py", "--style", best.style, *_common(results.sweep.argv), *settings])


def _common(argv: Sequence[str]) -> list[str]:
    """What the sweep's command said besides what makes it a sweep."""
    kept: list[str] = []
    words = iter(argv[1:])
    for word in words:
        flag = word.split("=", 1)[0]
        if word == "sweep" or flag in OWN_FLAGS:
            if flag in OWN_FLAGS and OWN_FLAGS[flag] and "=" not in word:
                next(words, None)
            continue
        kept.append(word)
    return kept
