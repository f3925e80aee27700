"""Runs of a sweep are taken to their ends; what is done is left alone, what failed is done again by the next call."""

from __future__ import annotations

from pathlib import Path

import pytest
from sweep_case import FakeExecutor, make_run, record, record_choice, record_training

from brushset.cli.options import Options
from brushset.cli.sweeps.climb import Climb
from brushset.cli.sweeps.command import Work, _climbed_before, _save
from brushset.cli.sweeps.members import Member, at_rung
from brushset.paths import RunPaths, RunsDir
from brushset.protocols import Emit, Standing
from brushset.session import prepare_run
from brushset.spec import StyleSpec, TrainSection
from brushset.sweeps.drive import carry_out
from brushset.sweeps.halving import choose_rungs
from brushset.workers import note_submitted


@pytest.fixture
def runs(tmp_path: Path) -> RunsDir:
    return RunsDir(tmp_path / "runs")


def test_one_poisoned_run_of_twenty_leaves_nineteen_and_the_next_call_does_only_the_one(runs: RunsDir) -> None:
    folders = [make_run(runs, seed=seed) for seed in range(20)]
    poisoned = folders[7]

    def work(run: RunPaths) -> bool:
        if run == poisoned:
            return False
        record(run, "train", {}, {"weights/x": "x"})
        return True

    executor = FakeExecutor(work, at_once=4)
    ended = carry_out(executor, folders, ["train"], lambda _: None)
    assert [run for run, each in ended.items() if each.state != "finished"] == [poisoned]
    assert ended[poisoned].words == "it was poisoned"
    again = FakeExecutor(lambda run: not record(run, "train", {}, {"weights/x": "x"}))
    assert {each.state for each in carry_out(again, folders, ["train"], lambda _: None).values()} == {"finished"}
    assert again.submitted == [[poisoned.run_id]]


def test_a_result_whose_file_is_gone_is_made_again(runs: RunsDir) -> None:
    run = make_run(runs)
    record(run, "train", {}, {"weights/x": "x"})
    (run.root / "weights/x").unlink()
    executor = FakeExecutor(lambda run: not record(run, "train", {}, {"weights/x": "x"}))
    carry_out(executor, [run], ["train"], lambda _: None)
    assert executor.submitted == [[run.run_id]]


def test_what_waits_in_a_clusters_queue_is_followed_and_not_submitted_again(runs: RunsDir) -> None:
    first, second = make_run(runs, seed=1), make_run(runs, seed=2)
    executor = FakeExecutor(lambda run: not record(run, "train", {}), name="slurm", outlives=True)
    note_submitted(first, submission="s", executor="slurm", job="12_0")
    executor._state[first.run_id] = Standing("waiting")
    ended = carry_out(executor, [first, second], ["train"], lambda _: None)
    assert executor.submitted == [[second.run_id]]
    assert {each.state for each in ended.values()} == {"finished"}


def test_halving_trains_a_third_longer_and_the_best_to_the_end(runs: RunsDir) -> None:
    quality = {seed: seed / 10 for seed in range(9)}
    members = [member(rate) for rate in quality]
    rungs = choose_rungs(members[0].spec.train, len(members))
    assert rungs == 3
    begun = {prepare(each, runs): each for each in (at_rung(one, 0, rungs) for one in members)}

    def begin(one: Member) -> RunPaths:
        run = prepare(one, runs)
        begun[run] = one
        return run

    def work(run: RunPaths) -> bool:
        record_training(run)
        record_choice(run, quality[begun[run].spec.train.seed], 0.5)
        return True

    heard: list[str] = []
    climb = Climb(members, begun, rungs, begin, emit_to(heard))
    ended = carry_out(FakeExecutor(work), list(begun), ["train", "choose"], lambda _: None, climb.follow)
    by_rung = [sorted(each.spec.train.seed for each in begun.values() if each.rung == rung) for rung in range(3)]
    assert by_rung == [list(range(9)), [6, 7, 8], [8]]
    assert [each.spec.train.epochs for each in begun.values() if each.rung == 2] == [18]
    assert len(ended) == 13
    assert not heard


def test_halving_without_a_score_says_why_and_stops_at_the_first_rung(runs: RunsDir) -> None:
    members = [member(seed) for seed in range(3)]
    begun = {prepare(each, runs): each for each in (at_rung(one, 0, 2) for one in members)}
    heard: list[str] = []
    climb = Climb(members, begun, 2, lambda one: prepare(one, runs), emit_to(heard))

    def work(run: RunPaths) -> bool:
        record_training(run)
        return True

    assert len(carry_out(FakeExecutor(work), list(begun), ["train"], lambda _: None, climb.follow)) == 3
    assert heard == ["halving ends at the first rung: no run has a score (not evaluated yet)"]


def member(seed: int) -> Member:
    train = TrainSection(engine="native", epochs=18, seed=seed)
    return Member(
        StyleSpec(name="cartoon", trigger="t", train=train), "", {"a.png": "0"}, {"train.seed": seed}, f"seed={seed}"
    )


def prepare(one: Member, runs: RunsDir) -> RunPaths:
    return prepare_run(one.spec, one.images, "", runs)


def emit_to(heard: list[str]) -> Emit:
    def emit(event: str, /, **fields: object) -> None:
        heard.append(str(fields["text"]))

    return emit


def test_whom_an_earlier_call_let_go_on_is_not_decided_again(runs: RunsDir) -> None:
    members = [member(seed) for seed in range(9)]
    work = Work([], Options(runs_dir=runs.root), members, "s", 3, "train", emit_to([]))
    begun = {prepare(each, runs): each for each in (at_rung(members[2], 0, 3), at_rung(members[2], 1, 3))}
    _save(work, begun)
    (again,) = _climbed_before(work)
    assert (again.rung, again.spec) == (1, at_rung(members[2], 1, 3).spec)
    assert prepare(again, runs) in begun
