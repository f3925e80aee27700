"""`run-one`: the very folder it is given, as often as it is called; and what sends runs elsewhere."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import orchestrate
from brushset.cli.dispatch import follow, machine_slots
from brushset.cli.guard import guarded
from brushset.cli.options import Options
from brushset.executors import EXECUTORS, make_executor
from brushset.executors.standing import is_finished, run_task
from brushset.images import source_digest
from brushset.load import load_style
from brushset.log import EventLog
from brushset.manifest import read_manifest
from brushset.paths import PROFILES, PROJECT, STYLES, RunPaths, RunsDir
from brushset.protocols import Standing
from brushset.session import prepare_run
from brushset.spec import ExecutorSection, StyleSpec
from brushset.workers import note_cancelled, note_submitted, read_workers

STAGES = [stage.name for stage in orchestrate.STAGES]
UNTIL = "preprocess"


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    kept = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    yield
    for signum, handler in kept.items():
        signal.signal(signum, handler)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A user's folder; the demo's images, copied."""
    import shutil

    from brushset.demo import demo_images

    return Path(shutil.copytree(demo_images("cartoon"), tmp_path_factory.mktemp("art") / 'it\'s "mine"'))


def spec_of(images: Path, *settings: str) -> StyleSpec:
    layers = [("--images", {"dataset": {"images": str(images)}})]
    profiles = [PROFILES / "smoke.toml"]
    return load_style(
        STYLES / "cartoon.toml", profiles=profiles, layers=layers, settings=["train.engine=native", *settings]
    )


@pytest.fixture
def run(images: Path, tmp_path: Path) -> RunPaths:
    spec = spec_of(images)
    return prepare_run(spec, source_digest(images), "as asked for", RunsDir(tmp_path / "runs"))


def call(run: RunPaths, *argv: str) -> int:
    return guarded(orchestrate.app, ["run-one", str(run.root), *argv])


def test_a_prepared_run_waits_is_found_again_and_is_nobodys_latest(run: RunPaths, images: Path) -> None:
    runs = RunsDir(run.root.parent.parent)
    manifest = read_manifest(run)
    assert manifest is not None
    assert manifest.status == "waiting"
    assert not (run.root.parent / "latest").exists()
    again = spec_of(images, "executor.use=slurm", "executor.slurm.partition=gpu", "train.stall_minutes=3")
    assert prepare_run(again, source_digest(images), "", runs) == run
    assert prepare_run(spec_of(images, "train.seed=9"), source_digest(images), "", runs) != run
    assert load_style(run.spec).images_dir(PROJECT) == images


def test_it_goes_on_where_it_was_and_a_finished_run_is_not_touched(
    run: RunPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(run, "--until", "audit") == 0
    assert call(run, "--until", UNTIL) == 0
    assert len(read_workers(run).starts) == 2
    before = {path: path.stat().st_mtime_ns for path in run.root.rglob("*")}
    capsys.readouterr()
    assert call(run, "--until", UNTIL, "--json") == 0
    (said,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert "nothing to do" in said["text"]
    assert {path: path.stat().st_mtime_ns for path in run.root.rglob("*")} == before
    next((run.images).glob("*.png")).write_bytes(b"spoilt")
    assert not is_finished(run, STAGES[: STAGES.index(UNTIL) + 1])
    assert call(run, "--until", UNTIL) == 0
    assert is_finished(run, STAGES[: STAGES.index(UNTIL) + 1])


def test_what_does_not_vary_is_taken_over_from_the_styles_other_runs(run: RunPaths, images: Path) -> None:
    assert call(run, "--until", UNTIL) == 0
    runs = RunsDir(run.root.parent.parent)
    other = prepare_run(spec_of(images, "train.network_dim=8"), source_digest(images), "", runs)
    assert call(other, "--until", UNTIL) == 0
    events = [json.loads(line) for line in other.events.read_text().splitlines()]
    assert [event["reason"] for event in events if event["event"] == "stage_skip"] == [
        f"taken from run {run.run_id}"
    ] * 2


def test_images_that_changed_since_are_named(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    own = Path(shutil.copytree(images, tmp_path / "own"))
    run = prepare_run(spec_of(own), source_digest(own), "", RunsDir(tmp_path / "runs"))
    first = own / min(source_digest(own))
    first.unlink()
    assert call(run) == 3
    said = capsys.readouterr().err
    assert first.name in said
    assert "1 files are not as they were" in said
    assert not read_workers(run).starts


def test_several_folders_are_done_and_one_that_cannot_be_stops_no_other(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = RunsDir(tmp_path / "runs")
    good = [prepare_run(spec_of(images, f"train.seed={seed}"), source_digest(images), "", runs) for seed in (1, 2)]
    gone = prepare_run(spec_of(tmp_path / "gone"), {"a.png": "0"}, "", runs)
    folders = [str(run.root) for run in (good[0], gone, good[1])]
    assert guarded(orchestrate.app, ["run-one", *folders, "--until", UNTIL]) == 7
    assert "gone: no such folder" in capsys.readouterr().err
    assert all(is_finished(run, STAGES[: STAGES.index(UNTIL) + 1]) for run in good)
    elsewhere = prepare_run(spec_of(images), source_digest(images), "", RunsDir(tmp_path / "others"))
    assert guarded(orchestrate.app, ["run-one", folders[0], str(elsewhere.root)]) == 2
    assert "two folders of runs" in capsys.readouterr().err


def test_what_is_no_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(orchestrate.app, ["run-one", str(tmp_path)]) == 2
    assert "no run.json" in capsys.readouterr().err


def test_a_cancelled_run_is_begun_by_no_executor_and_by_hand_all_the_same(run: RunPaths) -> None:
    note_submitted(run, submission="a", executor="slurm")
    note_cancelled(run)
    assert call(run, "--submission", "a", "--until", "audit") == 2
    assert not read_workers(run).starts
    assert call(run, "--until", "audit") == 0


def test_a_second_caller_gets_75(run: RunPaths, capsys: pytest.CaptureFixture[str]) -> None:
    holding = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from brushset.claims import claim_run\n"
        "from brushset.log import silent; from brushset.paths import RunPaths\n"
        "with claim_run(RunPaths(Path(sys.argv[2])), silent): print('held', flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", holding, str(PROJECT), str(run.root)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert call(run) == 75
        assert f"process {holder.pid} on" in capsys.readouterr().err
        holder.kill()


def test_a_real_run_through_an_executor_is_followed_to_its_end(run: RunPaths, tmp_path: Path) -> None:
    heard: list[tuple[object, object]] = []
    events = EventLog(lambda _, fields: heard.append((fields["name"], fields["state"])))
    with closing(make_executor(ExecutorSection(), machine_slots(Options()))) as executor:
        found = follow(executor, {"cartoon": run_task(run, STAGES[: STAGES.index(UNTIL) + 1])}, events)
    assert found == {"cartoon": Standing("finished", 0)}
    assert heard[0][1] in {"waiting", "running"}
    assert heard[-1] == ("cartoon", "finished")
    manifest = read_manifest(run)
    assert manifest is not None
    assert (manifest.status, manifest.argv[1]) == ("partial", "run-one")


def test_slots_are_one_a_gpu_times_parallel(monkeypatch: pytest.MonkeyPatch) -> None:
    from brushset.cli import dispatch
    from brushset.cli.devices import Gpu

    gpus = [Gpu(str(number), f"GPU-{number}", "H200", 140.0) for number in range(4)]
    monkeypatch.setattr(dispatch, "list_gpus", lambda: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def seen(options: Options) -> list[str]:
        return [slot["CUDA_VISIBLE_DEVICES"] for slot in machine_slots(options)]

    assert seen(Options()) == ["0", "1", "2", "3"]
    assert seen(Options(gpus="1,3", parallel=2)) == ["1", "3", "1", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")  # inside a batch job
    assert seen(Options()) == ["2"]
    monkeypatch.setattr(dispatch, "list_gpus", list)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert len(machine_slots(Options(parallel=3))) == 3


def test_every_executor_has_its_settings_and_a_name_that_is_not_one_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(EXECUTORS) == {"local", "ray", "slurm"}
    assert guarded(orchestrate.app, ["--style", "cartoon", "--smoke", "--executor", "dask", "--dry-run"]) == 2
    assert "--executor: input should be 'local', 'ray' or 'slurm'" in capsys.readouterr().err
