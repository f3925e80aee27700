"""Stages are skipped only where nothing changed, and a crash leaves no record or a true one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from brushset.errors import UsageError, VerificationFailed
from brushset.paths import PROJECT, RunPaths, RunsDir
from brushset.pipeline import Pipeline, Stage, StageContext
from brushset.records import Record
from brushset.spec import StyleSpec, TrainSection
from brushset.stage_records import load_record, outputs_hold


class Made(Record):
    text: str


class Grown(Record):
    text: str


def make(ctx: StageContext) -> Made:
    (ctx.workdir / "made.txt").write_text("made", encoding="utf-8")
    return Made(text="made")


def grow(ctx: StageContext) -> Grown:
    text = f"{ctx.get(Made).text} {ctx.spec.train.epochs}"
    (ctx.workdir / "grown.txt").write_text(text, encoding="utf-8")
    return Grown(text=text)


STAGES: tuple[Stage[Any], ...] = (
    Stage(name="make", record=Made, run=make, reads=("trigger",), output="made"),
    Stage(name="grow", record=Grown, run=grow, reads=("train",), needs=("make",), output="grown"),
)


class Heard:
    def __init__(self) -> None:
        self.events: list[tuple[str, Mapping[str, object]]] = []

    def __call__(self, event: str, /, **fields: object) -> None:
        self.events.append((event, fields))

    def stages(self, event: str) -> list[object]:
        return [fields["stage"] for name, fields in self.events if name == event]


def spec(**train: Any) -> StyleSpec:
    return StyleSpec(name="mine", trigger="t", train=TrainSection(**train))


def run_in(folder: Path, of: StyleSpec, donors: tuple[RunPaths, ...] = (), **how: Any) -> Heard:
    heard = Heard()
    folder.mkdir(parents=True, exist_ok=True)
    Pipeline(of, RunPaths(folder), heard, donors).execute(STAGES, **how)
    return heard


def test_a_second_run_does_nothing(tmp_path: Path) -> None:
    assert run_in(tmp_path / "r", spec()).stages("stage_end") == ["make", "grow"]
    assert run_in(tmp_path / "r", spec()).stages("stage_end") == []


def test_only_what_reads_the_changed_setting_is_done_again(tmp_path: Path) -> None:
    run_in(tmp_path / "r", spec())
    assert run_in(tmp_path / "r", spec(epochs=3)).stages("stage_end") == ["grow"]
    assert (tmp_path / "r/grown/grown.txt").read_text() == "made 3"


def test_another_run_takes_over_what_did_not_change(tmp_path: Path) -> None:
    run_in(tmp_path / "a", spec())
    heard = run_in(tmp_path / "b", spec(epochs=3), donors=(RunPaths(tmp_path / "a"),))
    assert heard.stages("stage_end") == ["grow"]
    assert (tmp_path / "b/made/made.txt").read_text() == "made"


@pytest.mark.parametrize("damage", ["delete", "change"])
def test_a_damaged_output_is_made_again(tmp_path: Path, damage: str) -> None:
    run_in(tmp_path / "r", spec())
    made = tmp_path / "r/made/made.txt"
    if damage == "delete":
        made.unlink()
    else:
        made.write_text("tampered")
    assert run_in(tmp_path / "r", spec()).stages("stage_end") == ["make"]
    assert made.read_text() == "made"


def test_a_damaged_donor_is_not_used(tmp_path: Path) -> None:
    run_in(tmp_path / "a", spec())
    (tmp_path / "a/made/made.txt").write_text("tampered")
    heard = run_in(tmp_path / "b", spec(), donors=(RunPaths(tmp_path / "a"),))
    assert "make" in heard.stages("stage_end")
    assert (tmp_path / "b/made/made.txt").read_text() == "made"


def test_force_redoes_one_stage_and_what_is_unaffected_stays(tmp_path: Path) -> None:
    run_in(tmp_path / "r", spec())
    assert run_in(tmp_path / "r", spec(), force="make").stages("stage_end") == ["make"]


def test_until_stops_after_the_stage(tmp_path: Path) -> None:
    assert run_in(tmp_path / "r", spec(), until="make").stages("stage_end") == ["make"]
    assert load_record(RunPaths(tmp_path / "r"), "grow") is None


def test_an_unknown_stage_is_named_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="make, grow"):
        run_in(tmp_path / "r", spec(), until="grwo")


def test_a_stage_that_fails_leaves_no_record_and_no_litter(tmp_path: Path) -> None:
    def fail(ctx: StageContext) -> Grown:
        (ctx.workdir / "half.txt").write_text("half")
        raise UsageError("no")

    broken = (STAGES[0], Stage(name="grow", record=Grown, run=fail, needs=("make",), output="grown"))
    run = RunPaths(tmp_path / "r")
    run.root.mkdir()
    with pytest.raises(UsageError):
        Pipeline(spec(), run, Heard()).execute(broken)
    assert load_record(run, "grow") is None
    assert {path.name for path in run.root.iterdir()} == {"made", "records"}


def test_standing_on_a_finished_run_takes_its_results_as_they_are(tmp_path: Path) -> None:
    run_in(tmp_path / "a", spec())
    pipeline = Pipeline(spec(epochs=9), RunPaths(tmp_path / "a"), Heard())
    pipeline.stand_on(STAGES, before="grow", source=RunPaths(tmp_path / "a"))
    assert pipeline.execute(STAGES[1:]) == 1


def test_standing_on_a_damaged_run_is_refused(tmp_path: Path) -> None:
    run_in(tmp_path / "a", spec())
    (tmp_path / "a/made/made.txt").unlink()
    with pytest.raises(VerificationFailed, match="--force make"):
        Pipeline(spec(), RunPaths(tmp_path / "a"), Heard()).stand_on(
            STAGES, before="grow", source=RunPaths(tmp_path / "a")
        )


def test_a_merged_stage_keeps_edits_through_force_and_take_over(tmp_path: Path) -> None:
    def write(ctx: StageContext) -> Grown:
        kept = ctx.run.root / "made/note.txt"
        edited = ctx.previous is not None and kept.is_file() and kept.read_text() != ctx.previous["text"]
        text = kept.read_text() if edited else "fresh"
        (ctx.workdir / "note.txt").write_text(text)
        return Grown(text=text)

    note = Stage(
        name="note", record=Grown, run=write, needs=("make",), output="made", publish="merge", keeps_edits=True
    )
    a, b = RunPaths(tmp_path / "a"), RunPaths(tmp_path / "b")
    for run in (a, b):
        run.root.mkdir()
    Pipeline(spec(), a, Heard()).execute((STAGES[0], note))
    (a.root / "made/note.txt").write_text("by hand")
    Pipeline(spec(), b, Heard(), donors=(a,)).execute((STAGES[0], note))
    assert (b.root / "made/note.txt").read_text() == "by hand"
    assert (b.root / "made/made.txt").read_text() == "made"


CRASHING = """
    import os, signal, sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[1]); sys.path.insert(0, sys.argv[1] + "/tests")
    import test_pipeline as t
    from brushset.pipeline import Stage
    def slow(ctx):
        (ctx.workdir / "grown.txt").write_text("half")
        print("half", flush=True)
        import time; time.sleep(60)
    stages = (t.STAGES[0], Stage(name="grow", record=t.Grown, run=slow, reads=("train",), needs=("make",), output="grown"))
    from brushset.paths import RunPaths
    t.Pipeline(t.spec(), RunPaths(Path(sys.argv[2])), t.Heard()).execute(stages)
"""


def test_kill_9_in_mid_stage_leaves_a_state_that_the_next_run_completes(tmp_path: Path) -> None:
    folder = tmp_path / 'odd "name"\nwith $(x)'
    folder.mkdir()
    argv = [sys.executable, "-c", textwrap.dedent(CRASHING), str(PROJECT), str(folder)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "half\n"
        os.kill(child.pid, signal.SIGKILL)
    run = RunPaths(folder)
    assert load_record(run, "grow") is None
    assert not (folder / "grown").exists()
    assert run_in(folder, spec()).stages("stage_end") == ["grow"]
    record = load_record(run, "grow")
    assert record is not None
    assert outputs_hold(run, record)


def test_latest_points_to_the_run_and_survives_a_missing_link(tmp_path: Path) -> None:
    runs = RunsDir(tmp_path)
    for name in ("20260101-000000-aa", "20260102-000000-bb"):
        run = runs.run("mine", name)
        run.root.mkdir(parents=True)
        run.manifest.write_text("{}")
        runs.point_latest(run)
    runs.point_latest(runs.run("mine", "20260101-000000-aa"))
    latest = runs.latest("mine")
    assert latest is not None
    assert latest.run_id == "20260101-000000-aa"
    (tmp_path / "mine/latest").unlink()
    newest = runs.latest("mine")
    assert newest is not None
    assert newest.run_id == "20260102-000000-bb"
