"""What a sweep's runs show together: their order, what each setting did, the page, and the price of the next sweep."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from report_case import Structure
from sweep_case import make_run, record, record_choice, record_training

from brushset.cli.sweeps.report import read_results, write_report
from brushset.manifest import read_manifest
from brushset.page.sweep import heat_map
from brushset.paths import RunsDir
from brushset.spec import StyleSpec
from brushset.sweeps.cost import Planned, add_up, pace_of, read_history
from brushset.sweeps.ledger import Entry, Sweep, load_sweep, save_sweep
from brushset.sweeps.ranking import find_effects, lowest_rung
from brushset.sweeps.scores import LOSS, RETENTION, read_score


@pytest.fixture
def runs(tmp_path: Path) -> RunsDir:
    return RunsDir(tmp_path / "runs")


def make_sweep(runs: RunsDir, points: list[dict[str, Any]], folders: list[Any], **fields: Any) -> Sweep:
    entries = tuple(
        Entry(run=f"cartoon/{run.run_id}", style="cartoon", settings=point)
        for run, point in zip(folders, points, strict=True)
    )
    keys = tuple(dict.fromkeys(key for point in points for key in point))
    argv = ("orchestrate.py", "sweep", "--style", "cartoon", "--smoke", "--grid", "train.network_dim=8,16")
    sweep = Sweep(name="s", argv=argv, created_at=0, varied=keys, until="train", entries=entries, **fields)
    save_sweep(runs, sweep)
    return sweep


def test_runs_are_ranked_by_the_half_that_chose_and_told_by_the_other(runs: RunsDir) -> None:
    points = [{"train.network_dim": dim} for dim in (8, 16, 32)]
    folders = [make_run(runs, network_dim=dim) for dim in (8, 16, 32)]
    for run, chosen, reported, feasible in zip(
        folders, (0.5, 0.7, 0.9), (0.66, 0.6, 0.8), (True, True, False), strict=True
    ):
        record_training(run)
        record_choice(run, chosen, reported, feasible=feasible)
    make_sweep(runs, points, folders)
    ranked = read_results(runs, "s").ranked
    assert [each.settings["train.network_dim"] for each in ranked] == [16, 8, 32]  # beyond its bounds, so last
    score = ranked[0].score
    assert score is not None
    assert (score.measure, score.ranked_by, score.reported.value) == (RETENTION, 0.7, 0.6)


def test_without_a_measure_of_style_the_loss_on_held_out_images_ranks_the_least_first(runs: RunsDir) -> None:
    folders = [make_run(runs, seed=seed) for seed in range(3)]
    for run, loss in zip(folders, (0.2, 0.1, None), strict=True):
        record_training(run, loss=loss)
    make_sweep(runs, [{"train.seed": seed} for seed in range(3)], folders)
    ranked = read_results(runs, "s").ranked
    assert [each.settings["train.seed"] for each in ranked] == [1, 0, 2]
    scores = [each.score for each in ranked]
    assert [score.measure for score in scores if score] == [LOSS, LOSS, ""]
    assert scores[0] is not None
    assert scores[0].meaningful


def test_a_loss_on_a_base_of_random_numbers_means_nothing(runs: RunsDir) -> None:
    run = make_run(runs)
    record_training(run, loss=0.1, random=True)
    score = read_score(run)
    assert score is not None
    assert not score.meaningful


def scored_grid(runs: RunsDir) -> None:
    points, folders = [], []
    for dim in (8, 16):
        for rate in (5e-5, 1e-4):
            for seed in (42, 43):
                points.append({"train.network_dim": dim, "train.unet_lr": rate, "train.seed": seed})
                run = make_run(runs, network_dim=dim, unet_lr=rate, seed=seed)
                record_training(run)
                record_choice(run, 0.3 * (dim == 16) + 0.01 * (seed - 42), 0.4)
                folders.append(run)
    make_sweep(runs, points, folders)


def test_what_each_setting_did_is_held_against_how_far_runs_lie_apart_anyway(runs: RunsDir) -> None:
    scored_grid(runs)
    effects = find_effects(
        lowest_rung(read_results(runs, "s").ranked), ["train.network_dim", "train.unet_lr", "train.seed"]
    )
    assert [effect.key for effect in effects] == ["train.network_dim", "train.seed", "train.unet_lr"]
    first, last = effects[0], effects[-1]
    assert first.spread == pytest.approx(0.3)
    assert first.best.value == 16
    assert first.within is not None
    assert last.within is not None
    assert first.spread > 10 * first.within
    assert last.spread < last.within


def test_two_settings_on_a_grid_make_a_map_of_means_over_seeds(runs: RunsDir) -> None:
    scored_grid(runs)
    found = heat_map(read_results(runs, "s").ranked, ["train.network_dim", "train.unet_lr"])
    assert found is not None
    assert found.columns == (5e-5, 1e-4)
    assert [[round(cell.value or 0, 3) for cell in cells] for _, cells in found.rows] == [
        [0.005, 0.005],
        [0.305, 0.305],
    ]
    assert heat_map(read_results(runs, "s").ranked, ["train.network_dim"]) is None


def test_the_page_tells_the_best_the_failures_and_how_to_use_the_best(runs: RunsDir) -> None:
    scored_grid(runs)
    failed = make_run(runs, status="failed", network_dim=64)
    manifest = read_manifest(failed)
    assert manifest is not None
    failed.manifest.write_text(manifest.model_copy(update={"error": "out of <memory>"}).model_dump_json())
    sweep = load_sweep(runs, "s")
    entry = Entry(run=f"cartoon/{failed.run_id}", style="cartoon", settings={"train.network_dim": 64})
    save_sweep(runs, sweep.model_copy(update={"entries": (*sweep.entries, entry)}))
    first = load_sweep(runs, "s").runs(runs)[0]
    first.report.write_text("a page")
    page = write_report(runs, read_results(runs, "s")).read_text()
    Structure(page)
    assert page.count("report.html") == 1  # no link to a page that is not there
    assert f'href="../../cartoon/{first.run_id}/report.html"' in page
    for words in (
        "8 of 9 done, 1 failed",
        "out of &lt;memory&gt;",
        "Over seeds",
        "best at 16".capitalize(),
    ):
        assert words in page
    data = json.loads((runs.sweep("s") / "report.json").read_text())
    assert data["meaningful"]
    assert data["best_command"].endswith(
        "--style cartoon --smoke --set train.network_dim=16 --set train.unet_lr=5e-05 --set train.seed=43"
    )
    assert [each["ranked_by"] for each in data["runs"]][-1] is None
    for each in data["runs"]:
        assert (runs.sweep("s") / each["folder"] / "run.json").is_file()


def test_the_page_of_a_smoke_sweep_says_that_nothing_means_anything(runs: RunsDir) -> None:
    folders = [make_run(runs, smoke=True, seed=seed) for seed in (1, 2)]
    for run in folders:
        record_training(run)
        record_choice(run, 0.5, 0.4, meaningful=False)
    make_sweep(runs, [{"train.seed": 1}, {"train.seed": 2}], folders)
    page = write_report(runs, read_results(runs, "s")).read_text()
    assert "These scores say nothing about quality" in page
    assert page.count("meaningless</span>") == 2


def test_the_price_stands_on_runs_alike_and_is_unknown_without_them(runs: RunsDir) -> None:
    run = make_run(runs)
    record_training(run, steps=100, seconds=60.0)
    for stage, seconds in (("choose", 10.0), ("convert", 1.0), ("evaluate", 20.0), ("export", 1.0), ("report", 1.0)):
        record(run, stage, {}, seconds=seconds)
    manifest = read_manifest(run)
    assert manifest is not None
    history = read_history(runs, manifest.device)
    alike = StyleSpec.model_validate({"name": "anime", "trigger": "t", "train": {"engine": "native", "seed": 7}})
    pace = pace_of(alike, history)
    assert (pace.step_s, pace.start_s, pace.after_s) == (0.5, 10.0, 33.0)
    cost = add_up([Planned(200, pace, 5)] * 3, evaluates=True)
    assert cost.training_minutes == pytest.approx(3 * (200 * 0.5 + 10) / 60)
    assert cost.after_minutes == pytest.approx(3 * 33 / 60)
    larger = alike.model_copy(update={"train": alike.train.model_copy(update={"batch_size": 8})})
    assert pace_of(larger, history).step_s is None
    assert add_up([Planned(200, pace_of(larger, history), 5)], evaluates=True).training_minutes is None
    assert read_history(runs, "NVIDIA H100, GPU-1") == []
    assert math.isfinite(cost.disk_bytes)
