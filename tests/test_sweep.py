"""`sweep` from the command line: planned, done in one pass, ranked; the same command again does only what is missing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import orchestrate
from brushset.cli.guard import guarded
from brushset.cli.options import Options
from brushset.cli.sweeps.ask import SweepAsk
from brushset.cli.sweeps.members import plan_members, planned_steps
from brushset.cli.sweeps.report import _common
from brushset.errors import UsageError
from brushset.paths import RunPaths, RunsDir
from brushset.records import BaseFile
from brushset.stage_records import load_record
from brushset.sweeps.ledger import Sweep, load_sweep
from brushset.workers import read_workers


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(4):
        Image.effect_noise((160, 160), 60 + number).convert("RGB").save(folder / f"{number}.png")
    return folder


def call(images: Path, *words: str) -> int:
    where = ("--images", str(images), "--runs-dir", str(images.parent / "runs"), "--until", "train", "--json")
    return guarded(orchestrate.app, ("sweep", "--style", "cartoon", "--smoke", "--engine", "native", *where, *words))


def told(capsys: pytest.CaptureFixture[str], event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return [line for line in lines if line["event"] == event]


def the_sweep(images: Path) -> tuple[Sweep, list[RunPaths]]:
    runs = RunsDir(images.parent / "runs")
    (folder,) = runs.sweep("").iterdir()
    sweep = load_sweep(runs, folder.name)
    return sweep, sweep.runs(runs)


def starts(runs: Sequence[RunPaths]) -> list[int]:
    return [sum(event.event == "started" for event in read_workers(run).events) for run in runs]


def test_two_by_two_are_trained_in_one_pass_and_the_same_command_does_nothing(
    images: Path, tiny_base: BaseFile, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ("--grid", "train.network_dim=2,4", "--grid", "train.unet_lr=1e-4,5e-4")
    assert call(images, *grid, "--dry-run") == 0
    (plan,) = told(capsys, "sweep_plan")
    assert (plan["how"], len(plan["members"])) == ("trained in one pass, in this process", 4)
    assert plan["cost"]["training_minutes"] is None
    assert not (images.parent / "runs").exists()

    assert call(images, *grid) == 0
    sweep, runs = the_sweep(images)
    assert sweep.varied == ("train.network_dim", "train.unet_lr")
    hashes = {(run.weights / "cartoon.safetensors").read_bytes() for run in runs}
    assert len(hashes) == 4
    captioned = [load_record(run, "caption") for run in runs]
    assert [bool(each and each.taken_from) for each in captioned] == [False, True, True, True]
    assert "beside 3 others" in runs[0].train_log.read_text()
    assert (RunsDir(images.parent / "runs").sweep(sweep.name) / "report.html").is_file()
    assert not (images.parent / "runs/cartoon/latest").exists()  # that is for the style's own command

    capsys.readouterr()
    assert call(images, *grid) == 0
    assert {each["state"] for each in told(capsys, "sweep_run")} == {"finished"}
    assert starts(runs) == [1, 1, 1, 1]
    assert the_sweep(images)[1] == runs


def test_a_poisoned_run_fails_alone_and_only_it_is_tried_again(
    images: Path, tiny_base: BaseFile, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"train.seed": 1}, {"train.seed": 2}, {"train.seed": 3, "train.sample_every_n_epochs": 1}]
    (images.parent / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert call(images, "--list", str(images.parent / "list.jsonl")) == 7
    states = {each["label"]: each["state"] for each in told(capsys, "sweep_run")}
    assert sorted(states.values()) == ["failed", "finished", "finished"]
    assert states["seed=3 sample_every_n_epochs=1"] == "failed"
    _, runs = the_sweep(images)
    page = next((images.parent / "runs/sweeps").glob("*/report.html")).read_text()
    assert "the native engine has no such thing" in page
    assert call(images, "--list", str(images.parent / "list.jsonl")) == 7
    assert starts(runs) == [1, 1, 2]


def test_gpus_take_runs_of_their_own_and_on_each_they_are_packed(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def how(*words: str) -> str:
        assert call(images, "--seeds", "4", "--gpus", "0,1", "--dry-run", *words) == 0
        (plan,) = told(capsys, "sweep_plan")
        return str(plan["how"])

    assert how() == "divided over 2 GPUs, on each trained in one pass"
    assert how("--set", "train.pack=false") == "executor local, 2 at once"
    assert how("--parallel", "2") == "executor local, 4 at once"
    assert how("--executor", "slurm") == "executor slurm"
    assert call(images, "--seeds", "2", "--set", "train.processes=2", "--dry-run") == 2
    assert "native engine trains a style on one GPU" in capsys.readouterr().err


def test_one_poisoned_run_of_twenty_leaves_nineteen_results_and_exit_7(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, float]] = [{"train.seed": seed} for seed in range(20)]
    rows[7] |= {"dataset.max_megapixels": 0.001}  # less than any image has
    (images.parent / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ask = ("--list", str(images.parent / "list.jsonl"), "--until", "audit")
    assert call(images, *ask) == 7
    (ended,) = told(capsys, "sweep_end")
    assert (ended["done"], ended["failed"]) == (19, 1)
    assert call(images, *ask) == 7
    _, runs = the_sweep(images)
    assert starts(runs) == [2 if number == 7 else 1 for number in range(20)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "nothing varies"),
        (("--grid", "train.network_dmi=8,16"), 'did you mean "network_dim"'),
        (("--grid", "train.network_dim=8,0"), "--set train.network_dim=0"),
        (("--random", "3"), "go together"),
        (("--grid", "executor.use=ray,slurm"), "no part of what they are"),
        (("--grid", "train.seed=1,2", "--seeds", "2"), "more than one"),
        (("--seeds", "2", "--halving"), "not luck"),
        (("--grid", "train.epochs=1,2", "--halving"), "that halving varies"),
        (("--seeds", "2", "--force", "train"), "does what is missing"),
        (("--seeds", "2", "--name", "../x"), "a style is named"),
    ],
)
def test_what_cannot_go_well_is_said_before_anything_starts(
    words: tuple[str, ...], said: str, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(images, *words) == 2
    assert said in capsys.readouterr().err
    assert not (images.parent / "runs").exists()


def test_everything_wrong_with_any_run_is_said_at_once(images: Path) -> None:
    points = [{"train.network_dim": 0}, {"train.network_dim": 8}, {"train.unet_lr": 5}, {"train.network_dim": 0}]
    options = Options(style=["cartoon"], images=[str(images)], smoke=True, engine="native")
    with pytest.raises(UsageError) as error:
        plan_members(options, ["cartoon"], points, touch=False)
    assert len(str(error.value).splitlines()) == 2


def test_settings_that_make_no_difference_are_one_run(images: Path) -> None:
    options = Options(style=["cartoon"], images=[str(images)], smoke=True, engine="native")
    points = [{"train.stall_minutes": 5.0}, {"train.stall_minutes": 6.0}]
    assert len(plan_members(options, ["cartoon"], points, touch=False)) == 1


def test_steps_are_counted_from_images_without_the_captions_beside_them(images: Path) -> None:
    (images / "0.txt").write_text("a thing")
    settings = ["train.repeats=1"]
    options = Options(
        style=["cartoon"], images=[str(images)], engine="native", epochs=3, batch_size=2, settings=settings
    )
    (member,) = plan_members(options, ["cartoon"], [{}], touch=False)
    assert planned_steps(member) == (6, 3)


def test_seeds_go_on_from_the_styles_own() -> None:
    assert SweepAsk(seeds=3).points(42) == [{"train.seed": 42}, {"train.seed": 43}, {"train.seed": 44}]


def test_a_runs_own_command_is_the_sweeps_without_what_makes_it_one() -> None:
    argv = ["orchestrate.py", "--smoke", "sweep", "--style", "cartoon", "--grid", "a.b=1,2", "--grid=c.d=3", "--yes", "--set", "train.epochs=2"]  # fmt: skip
    assert _common(argv) == ["--smoke", "--set", "train.epochs=2"]
