"""What `clean` shows, and what it never touches."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from sweep_case import make_run, record, record_training

import orchestrate
from brushset.cli.guard import guarded
from brushset.cli.lookafter.leftovers import find_leftovers
from brushset.files import list_files, write_atomic
from brushset.paths import RunPaths, RunsDir
from brushset.sweeps.ledger import Entry, Sweep, save_sweep
from brushset.workers import append, event_of_ours


@pytest.fixture
def runs(tmp_path: Path) -> RunsDir:
    return RunsDir(tmp_path / "runs")


def filled(runs: RunsDir, seed: int) -> RunPaths:
    """A finished run with everything that there can be in one."""
    run = make_run(runs, seed=seed)
    record_training(run)
    for stage, path in (
        ("evaluate", "eval/a.png"),
        ("choose", "choice/a.png"),
        ("export", "export/a1111/x.safetensors"),
    ):
        record(run, stage, {}, {path: "p" * 1000})
    for path in (".tmp-train-1-2/x", ".old-eval-1/x", "choice/.scratch/x", "attempts/abc/attempt-001/state", "attempts/abc-refused/x", "logs/trainer/x", "images/a.txt", "images/a.png"):  # fmt: skip
        write_atomic(run.root / path, "x" * 500)
    return run


def kinds(runs: RunsDir, run: RunPaths, *, pictures: bool = False) -> set[str]:
    found = find_leftovers(runs, runs.styles(), pictures=pictures)
    return {each.kind for each in found if each.path.is_relative_to(run.root)}


def test_half_done_files_go_from_any_run_and_the_rest_from_older_ones_alone(runs: RunsDir) -> None:
    old, new = filled(runs, 1), filled(runs, 2)
    old, new = sorted((old, new), key=lambda run: run.run_id)
    assert kinds(runs, old) == {"half-done", "refused", "states", "trainer"}
    assert kinds(runs, old, pictures=True) == {"half-done", "refused", "states", "trainer", "pictures"}
    assert kinds(runs, new, pictures=True) == {"half-done", "refused"}


def test_what_latest_names_and_what_a_sweep_tells_of_stays(runs: RunsDir) -> None:
    made = sorted((filled(runs, seed) for seed in range(4)), key=lambda run: run.run_id)
    runs.point_latest(made[0])
    entry = Entry(run=f"cartoon/{made[1].run_id}", style="cartoon", settings={})
    save_sweep(runs, Sweep(name="s", argv=(), created_at=0, varied=(), until="train", entries=(entry,)))
    assert ["pictures" in kinds(runs, run, pictures=True) for run in made] == [False, False, True, False]


def test_a_run_that_somebody_works_on_is_left_alone(runs: RunsDir) -> None:
    run = filled(runs, 1)
    append(run, event_of_ours("started", by="me"))
    assert kinds(runs, run, pictures=True) == set()


def test_nothing_is_removed_without_yes_and_then_only_what_was_shown(
    runs: RunsDir, capsys: pytest.CaptureFixture[str]
) -> None:
    filled(runs, 1)
    time.sleep(0.01)
    filled(runs, 2)
    before = {path: path.read_bytes() for path in list_files(runs.root)}
    where = ["clean", "--pictures", "--runs-dir", str(runs.root)]
    assert guarded(orchestrate.app, where) == 0
    assert "nothing is removed without --yes" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in list_files(runs.root)} == before
    shown = [each.path for each in find_leftovers(runs, runs.styles(), pictures=True)]
    assert guarded(orchestrate.app, [*where, "--yes"]) == 0
    after = {path: path.read_bytes() for path in list_files(runs.root)}
    assert after == {
        path: content for path, content in before.items() if not any(path.is_relative_to(each) for each in shown)
    }
    kept = {path.relative_to(runs.root).parts[2] for path in after}
    assert {"weights", "images", "records", "run.json", "spec.toml"} <= kept
    assert guarded(orchestrate.app, where) == 0
    assert "nothing to clean" in capsys.readouterr().out


def test_what_other_runs_link_to_frees_nothing(runs: RunsDir) -> None:
    run = filled(runs, 1)
    for path in list_files(run.root / ".tmp-train-1-2"):
        os.link(path, run.root / "elsewhere")
    sizes = {each.path.name: each.size_bytes for each in find_leftovers(runs, ["cartoon"], pictures=False)}
    assert (sizes[".tmp-train-1-2"], sizes[".old-eval-1"]) == (0, 500)


def test_lists_of_batch_jobs_go_after_a_week(runs: RunsDir) -> None:
    write_atomic(runs.submission("abc") / "runs.json", "{}")
    assert find_leftovers(runs, [], pictures=False) == []
    later = find_leftovers(runs, [], pictures=False, now=time.time() + 8 * 86400)
    assert [each.kind for each in later] == ["submission"]
