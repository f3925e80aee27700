"""Several styles' runs in one process: what they share is done once, and what befalls one touches no other."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from brushset.errors import BrushsetError, InputError, Interrupted, StyleLocked
from brushset.log import EventLog
from brushset.manifest import RunManifest, read_manifest
from brushset.paths import RunPaths, RunsDir
from brushset.pipeline import Stage, StageContext
from brushset.records import Record
from brushset.session import Ask, style_lock
from brushset.spec import EvaluateSection, StyleSpec, TrainSection
from brushset.stage_records import load_record, outputs_hold
from brushset.together import run_styles_together

STYLES = ("ink", "chalk", "oil")
Endings = Iterator[tuple[int, Any]]


class First(Record):
    """Done by each style alone."""


class Joint(Record):
    """Done by all at once."""

    beside: tuple[str, ...]


class Last(Record):
    """Done by each style alone, after that."""


class House:
    """Three stages, the second of them joint, and what was heard of them."""

    def __init__(self, root: Path) -> None:
        self.runs = RunsDir(root / "runs")
        self.events: list[tuple[str, str, str]] = []
        self.told: list[tuple[str, str]] = []
        self.joined: list[tuple[str, ...]] = []
        self.train: Callable[[Sequence[StageContext]], Endings] = self.train_well
        self.first: Callable[[StageContext], First] = lambda _: First()

    def train_well(self, contexts: Sequence[StageContext]) -> Endings:
        for place in range(len(contexts)):
            yield place, self.make(contexts, place)

    def make(self, contexts: Sequence[StageContext], place: int) -> Joint:
        (contexts[place].workdir / "weights.txt").write_text(contexts[place].spec.name)
        return Joint(beside=tuple(context.spec.name for context in contexts))

    @property
    def stages(self) -> tuple[Stage[Any], ...]:
        def joint(contexts: Sequence[StageContext]) -> Endings:
            self.joined.append(tuple(context.spec.name for context in contexts))
            yield from self.train(contexts)

        def alone(ctx: StageContext) -> Joint:
            raise AssertionError("trained alone")

        return (
            Stage(name="first", record=First, run=self.first, output="first", publish="merge"),
            Stage(name="train", record=Joint, run=alone, run_together=joint, reads=("name", "train"), needs=("first",),
                  output="weights"),
            Stage(name="last", record=Last, run=lambda _: Last(), needs=("train",), output="last"),
        )  # fmt: skip

    def go(
        self, *names: str, until: str | None = None, force: str | None = None, **sections: Any
    ) -> dict[str, BrushsetError]:
        styles = names or STYLES

        def hear(style: str) -> Callable[[str, Mapping[str, object]], None]:
            return lambda event, fields: self.events.append((style, event, str(fields.get("stage", ""))))

        asks = [
            Ask(StyleSpec(name=name, trigger="t", **sections), {"a.png": "0" * 64}, "because", until=until, force=force)
            for name in styles
        ]
        logs = {name: EventLog(hear(name)) for name in styles}
        return run_styles_together(asks, self.stages, self.runs, logs, self.tell)

    def tell(self, style: str, error: BrushsetError) -> None:
        self.told.append((style, str(error)))

    def run(self, style: str) -> RunPaths:
        run = self.runs.latest(style)
        assert run is not None
        return run

    def manifest(self, style: str) -> RunManifest:
        manifest = read_manifest(self.run(style))
        assert manifest is not None
        return manifest

    def statuses(self) -> list[str]:
        return [self.manifest(style).status for style in STYLES]


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_the_joint_stage_is_done_once_for_all_and_each_run_is_as_if_alone(house: House) -> None:
    assert house.go() == {}
    assert house.joined == [STYLES]
    assert house.statuses() == ["done"] * 3
    for style in STYLES:
        record = load_record(house.run(style), "train")
        assert record is not None
        assert outputs_hold(house.run(style), record)
        assert list(record.outputs) == ["weights/weights.txt"]
        assert (house.run(style).weights / "weights.txt").read_text() == style
        assert not list(house.run(style).root.glob(".tmp*"))


def test_up_to_the_joint_stage_styles_go_one_after_the_other_and_so_they_go_on(house: House) -> None:
    house.go()
    ends = [(style, stage) for style, event, stage in house.events if event == "stage_end"]
    assert ends == [(style, stage) for stage in ("first", "train", "last") for style in STYLES]


def test_events_go_to_each_styles_own_file(house: House) -> None:
    house.go()
    for style in STYLES:
        lines = [json.loads(line) for line in house.run(style).events.read_text().splitlines()]
        assert {line["style"] for line in lines} == {style}
        assert [line["event"] for line in lines] == ["run_start", *["stage_start", "stage_end"] * 3, "run_end"]
        assert lines[-1]["worked"] == 3


def test_the_same_ask_does_nothing_again(house: House) -> None:
    house.go()
    house.go()
    assert len(house.joined) == 1
    assert sum(event == "stage_skip" for _, event, _ in house.events) == 9


def test_only_those_that_have_to_train_train_together(house: House) -> None:
    house.go("chalk", until="train")
    house.go(until="train")
    assert house.joined == [("chalk",), ("ink", "oil")]
    assert house.statuses() == ["partial"] * 3


def test_forced_all_train_again_together(house: House) -> None:
    house.go()
    house.go(force="train")
    assert house.joined == [STYLES, STYLES]


def test_what_another_run_has_is_taken_over(house: House) -> None:
    house.go()
    house.go(evaluate=EvaluateSection(steps=3))
    assert len(house.joined) == 1
    house.go(train=TrainSection(seed=1))
    assert house.joined == [STYLES, STYLES]


def test_each_is_on_record_as_soon_as_it_ends(house: House) -> None:
    def train(contexts: Sequence[StageContext]) -> Endings:
        for place, context in enumerate(contexts):
            assert load_record(context.run, "train") is None
            yield place, house.make(contexts, place)
            record = load_record(context.run, "train")
            assert record is not None
            assert outputs_hold(context.run, record)

    house.train = train
    assert house.go() == {}


def test_one_that_fails_is_told_at_once_and_its_lock_is_free(house: House) -> None:
    seen = []

    def train(contexts: Sequence[StageContext]) -> Endings:
        yield 1, InputError("bad image")
        seen.append((list(house.told), house.manifest("chalk").status))
        with style_lock(house.runs, "chalk"):
            pass
        with pytest.raises(StyleLocked), style_lock(house.runs, "ink"):
            pass
        for place in (0, 2):
            yield place, house.make(contexts, place)

    house.train = train
    failures = house.go()
    assert list(failures) == ["chalk"]
    assert isinstance(failures["chalk"], InputError)
    assert seen == [([("chalk", "bad image")], "failed")]
    assert house.statuses() == ["done", "failed", "done"]
    assert load_record(house.run("chalk"), "train") is None
    house.train = house.train_well
    assert house.go() == {}
    assert house.joined == [STYLES, ("chalk",)]


def test_a_bug_in_what_they_share_fails_those_that_had_not_ended(house: House) -> None:
    def train(contexts: Sequence[StageContext]) -> Endings:
        yield 0, house.make(contexts, 0)
        raise ZeroDivisionError("oops")

    house.train = train
    failures = house.go()
    assert list(failures) == ["chalk", "oil"]
    assert all("this is a bug of ours" in str(error) for error in failures.values())
    assert house.statuses() == ["done", "failed", "failed"]
    assert "ZeroDivisionError" in (house.run("oil").logs / "error.log").read_text()


def test_an_output_that_cannot_be_published_fails_its_style_alone(house: House) -> None:
    def train(contexts: Sequence[StageContext]) -> Endings:
        for place, context in enumerate(contexts):
            result = house.make(contexts, place)
            if place == 0:
                (context.workdir / "weights.txt").unlink()
                context.workdir.rmdir()
            yield place, result

    house.train = train
    assert list(house.go()) == ["ink"]
    assert house.statuses() == ["failed", "done", "done"]


def test_one_of_which_nothing_is_told_has_failed(house: House) -> None:
    house.train = lambda contexts: iter([(0, house.make(contexts, 0)), (1, house.make(contexts, 1))])
    failures = house.go()
    assert list(failures) == ["oil"]
    assert "did not tell what came of oil" in str(failures["oil"])


def test_a_style_that_fails_before_is_not_trained(house: House) -> None:
    def first(ctx: StageContext) -> First:
        if ctx.spec.name == "ink":
            raise OSError(28, "No space left on device", "/full")
        return First()

    house.first = first
    failures = house.go()
    assert failures["ink"].exit_code == 4
    assert house.joined == [("chalk", "oil")]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_what_ended_and_every_run_says_so(house: House, signum: int) -> None:
    def train(contexts: Sequence[StageContext]) -> Endings:
        yield 1, house.make(contexts, 1)
        (contexts[0].workdir / "half.txt").write_text("half")
        raise Interrupted(signum)

    house.train = train
    with pytest.raises(Interrupted) as caught:
        house.go()
    assert caught.value.exit_code == 128 + signum
    assert house.statuses() == ["interrupted"] * 3
    assert not list(house.runs.root.glob("*/*/.tmp*"))
    house.train = house.train_well
    assert house.go() == {}
    assert house.joined == [STYLES, ("ink", "oil")]
    assert house.statuses() == ["done"] * 3


def test_a_style_that_is_locked_fails_alone_and_first(house: House) -> None:
    with style_lock(house.runs, "oil"):
        failures = house.go()
    assert isinstance(failures["oil"], StyleLocked)
    assert house.told[0][0] == "oil"
    assert house.joined == [("ink", "chalk")]
    assert [house.manifest(style).status for style in ("ink", "chalk")] == ["done", "done"]


def test_where_all_fail_nothing_is_joint(house: House) -> None:
    def first(ctx: StageContext) -> First:
        raise InputError("no")

    house.first = first
    assert list(house.go()) == list(STYLES)
    assert house.joined == []
