"""runs/report.html: what the newest runs of several styles show together, from what their stages left."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from brushset.errors import BrushsetError
from brushset.files import read_json, shown, write_atomic, write_json
from brushset.manifest import read_manifest
from brushset.page.project import Agreement, Findings, StyleRun, project_json, render_project
from brushset.paths import RunPaths, RunsDir
from brushset.protocols import Emit
from brushset.records import Audit, Choice, Estimate, EvalReport, Prepared, Trained
from brushset.stage_records import load_records, load_result


def update_project(names: Sequence[str], runs: RunsDir, emit: Emit) -> None:
    """Writes the project's page after a command on several styles; after one on a single style where there is a page
    already, which would tell of an older run. Nothing where fewer than two styles have a report.
    """
    if len(names) < 2 and not runs.report.is_file():
        return
    path = write_project(runs)
    if path is not None:
        emit("note", text=f"all styles together: {shown(path)}")


def write_project(runs: RunsDir) -> Path | None:
    """The page and its JSON, of every style in the folder; None where fewer than two have a report."""
    found = [read_style(run, runs) for name in runs.styles() if (run := runs.latest(name))]
    if sum(run.claims is not None for run in found) < 2:
        return None
    findings = find_together(found)
    write_json(runs.report_json, project_json(found, findings))
    write_atomic(runs.report, render_project(found, findings))
    return runs.report


def read_style(run: RunPaths, runs: RunsDir) -> StyleRun:
    """A run as far as it came."""
    manifest = read_manifest(run)
    records = load_records(run)
    return StyleRun(
        style=run.style,
        folder=run.root.relative_to(runs.root).as_posix(),
        root=run.root,
        claims=_claims(run) if "report" in records else None,
        status=manifest.status if manifest else "unknown",
        audit=load_result(run, "audit", Audit),
        prepared=load_result(run, "preprocess", Prepared),
        trained=load_result(run, "train", Trained),
        choice=load_result(run, "choose", Choice),
        evaluation=load_result(run, "evaluate", EvalReport),
        seconds={name: record.ended_at - record.started_at for name, record in records.items()},
    )


def find_together(runs: Sequence[StyleRun]) -> Findings:
    """What the runs show of mixes."""
    from eval.mixing.project import agreements, interference

    reports = {run.style: run.evaluation for run in runs if run.evaluation is not None}
    if not any(report.mix_choices for report in reports.values()):
        return Findings(None, ())
    found = tuple(
        Agreement(
            name=each.name,
            meaning=each.meaning,
            pairs=tuple((" + ".join(pair.styles), pair.predicted, pair.measured) for pair in each.pairs),
            rank_correlation=Estimate(value=each.rho, low=each.low, high=each.high, note=each.note),
        )
        for each in agreements(reports)
        if each.pairs
    )
    return Findings(interference(reports), found)


def _claims(run: RunPaths) -> Mapping[str, Any] | None:
    """report.json; None where the report is older than that file."""
    with contextlib.suppress(BrushsetError):
        return dict(read_json(run.report_json))
    return None
