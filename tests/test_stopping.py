"""SIGTERM in a training: saved first, then told; a run that cannot save is stopped all the same."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from native_case import make_run
from test_native_resume import RECIPE, Heard, job_for

from brushset import stopping
from brushset.cli import guard
from brushset.engines.native import NativeEngine
from brushset.errors import Interrupted
from brushset.log import EventLog
from brushset.paths import RunsDir
from brushset.pipeline import Stage, StageContext
from brushset.records import BaseFile
from brushset.records.base import Record
from brushset.session import Ask, run_style
from brushset.spec import StyleSpec, TrainSection
from brushset.stopping import stopping_at_rest


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """The front door's handlers."""
    kept = {signum: signal.signal(signum, guard._raise_interrupted) for signum in (signal.SIGINT, signal.SIGTERM)}
    yield
    for signum, handler in kept.items():
        signal.signal(signum, handler)


def test_a_native_training_saves_where_it_is_and_goes_on_from_there(tmp_path: Path, tiny_base: BaseFile) -> None:
    run = make_run(tmp_path, {}, RECIPE)
    told: list[int] = []

    class Terminated(Heard):
        def __call__(self, event: str, /, **fields: object) -> None:
            super().__call__(event, **fields)
            if event == "train_step" and fields["step"] == 3:
                os.kill(os.getpid(), signal.SIGTERM)
                told.append(3)

    rare = TrainSection(engine="native", save_state_minutes=600)
    job = job_for(run, tiny_base, out="first")
    job = replace(job, spec=job.spec.model_copy(update={"train": rare}), attempts_dir=tmp_path / "attempts")
    with pytest.raises(Interrupted) as caught:
        NativeEngine("cpu").train(job, Terminated())
    assert (told, caught.value.exit_code) == ([3], 143)
    heard = Heard()
    NativeEngine("cpu").train(replace(job, output_dir=tmp_path / "second"), heard)
    assert heard.steps[0] == 4


def test_elsewhere_sigterm_is_told_at_once() -> None:
    with pytest.raises(Interrupted):
        os.kill(os.getpid(), signal.SIGTERM)


def test_ctrl_c_never_waits() -> None:
    with pytest.raises(Interrupted) as caught, stopping_at_rest():
        os.kill(os.getpid(), signal.SIGINT)
    assert caught.value.exit_code == 130


def test_who_does_not_come_to_rest_is_stopped_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "PATIENCE_S", 0.3)
    began = time.monotonic()

    def work() -> None:
        with stopping_at_rest():
            os.kill(os.getpid(), signal.SIGTERM)
            while time.monotonic() - began < 30:
                time.sleep(0.01)

    with pytest.raises(Interrupted):
        work()
    assert 0.2 < time.monotonic() - began < 20


def test_what_came_too_late_to_be_saved_is_told_between_two_stages(tmp_path: Path) -> None:
    done: list[str] = []

    def train(context: StageContext) -> Record:
        with stopping_at_rest():
            os.kill(os.getpid(), signal.SIGTERM)
        done.append("train")
        return Record()

    def evaluate(context: StageContext) -> Record:
        done.append("evaluate")
        return Record()

    stages = [Stage(name=work.__name__, record=Record, run=work, output=work.__name__) for work in (train, evaluate)]
    with pytest.raises(Interrupted):
        run_style(Ask(StyleSpec(name="mine", trigger="t"), {}, ""), stages, RunsDir(tmp_path), EventLog())
    assert done == ["train"]
    (run,) = RunsDir(tmp_path).runs_of("mine")
    assert run.record("train").is_file()
