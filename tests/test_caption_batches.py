"""Captioning in batches: answers are kept as they come, memory that ends halves the batch, nothing is asked twice."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pytest

from brushset.captioners.answers import answers_file, open_answers
from brushset.captioners.batches import describe_images
from brushset.errors import EnvironmentProblem
from brushset.log import silent
from brushset.paths import PROJECT
from brushset.protocols import Describe, Emit, Subject


class Sayer:
    """Says "picture of <content>"; fits `room` images into memory at a time."""

    name = "sayer"

    def __init__(
        self, *, settings: str = "", batch_size: int = 8, room: int = 100, error: type[Exception] = MemoryError
    ):
        self.settings, self.batch_size, self.room, self.error = settings, batch_size, room, error
        self.batches: list[int] = []
        self.of = "weights@1"

    def weights(self) -> str:
        return self.of

    def load(self, emit: Emit) -> Describe:
        return self.describe

    def describe(self, subjects: Sequence[Subject]) -> list[str]:
        if len(subjects) > self.room:
            raise self.error("CUDA out of memory. Tried to allocate 20.00 MiB")
        self.batches.append(len(subjects))
        return [f"picture of {subject.image.read_text()}" for subject in subjects]


@pytest.fixture
def subjects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Subject]:
    monkeypatch.setenv("BRUSHSET_CACHE", str(tmp_path / "cache"))
    paths = [tmp_path / f"{index}.png" for index in range(10)]
    for path in paths:
        path.write_text(path.stem)
    return [Subject(path, path) for path in paths]


EXPECTED = [f"picture of {index}" for index in range(10)]


def test_answers_are_kept_and_not_asked_for_again(subjects: list[Subject]):
    first, second = Sayer(), Sayer()
    assert describe_images(first, subjects, silent) == EXPECTED
    assert describe_images(second, subjects, silent) == EXPECTED
    assert (first.batches, second.batches) == ([8, 2], [])


@pytest.mark.parametrize("change", [{"settings": "other"}, {"of": "weights@2"}, {"name": "other"}])
def test_other_settings_weights_or_captioners_are_asked_anew(change: dict[str, str], subjects: list[Subject]):
    describe_images(Sayer(), subjects, silent)
    other = Sayer()
    for key, value in change.items():
        setattr(other, key, value)
    describe_images(other, subjects, silent)
    assert other.batches == [8, 2]


def test_a_changed_image_is_asked_for_alone(subjects: list[Subject]):
    describe_images(Sayer(), subjects, silent)
    subjects[3].image.write_text("a cat")
    again = Sayer()
    assert describe_images(again, subjects, silent)[3] == "picture of a cat"
    assert again.batches == [1]


def test_anew_asks_for_what_is_known(subjects: list[Subject]):
    describe_images(Sayer(), subjects, silent)
    again = Sayer()
    describe_images(again, subjects, silent, anew=True)
    assert again.batches == [8, 2]


def test_equal_images_are_asked_for_once(subjects: list[Subject]):
    sayer = Sayer()
    assert describe_images(sayer, [subjects[0], subjects[0], subjects[1]], silent) == [
        "picture of 0",
        "picture of 0",
        "picture of 1",
    ]
    assert sayer.batches == [2]


def test_a_failure_costs_the_batch_it_was_in_and_no_other(subjects: list[Subject]):
    class Dying(Sayer):
        def describe(self, subjects: Sequence[Subject]) -> list[str]:
            if len(self.batches) == 2:
                raise KeyboardInterrupt
            return super().describe(subjects)

    with pytest.raises(KeyboardInterrupt):
        describe_images(Dying(batch_size=3), subjects, silent)
    again = Sayer(batch_size=3)
    assert describe_images(again, subjects, silent) == EXPECTED
    assert sum(again.batches) == 4


@pytest.mark.slow
def test_a_kill_9_costs_one_batch(subjects: list[Subject], tmp_path: Path):
    script = f"""
        import os, sys
        sys.path.insert(0, {str(PROJECT / "tests")!r})
        from pathlib import Path
        from test_caption_batches import Sayer
        from brushset.captioners.batches import describe_images
        from brushset.log import silent
        from brushset.protocols import Subject

        class Killed(Sayer):
            def describe(self, subjects):
                if len(self.batches) == 2:
                    os.kill(os.getpid(), 9)
                return super().describe(subjects)

        paths = [Path({str(tmp_path)!r}, f"{{index}}.png") for index in range(10)]
        describe_images(Killed(batch_size=3), [Subject(path, path) for path in paths], silent)
    """
    died = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=PROJECT, check=False)
    assert died.returncode == -9
    again = Sayer(batch_size=3)
    assert describe_images(again, subjects, silent) == EXPECTED
    assert sum(again.batches) == 4


def out_of_memory_of_torch() -> type[Exception]:
    import torch

    return torch.OutOfMemoryError


@pytest.mark.parametrize("error", [MemoryError, RuntimeError, out_of_memory_of_torch])
def test_memory_that_ends_halves_the_batch_and_loses_nothing(error: type[Exception], subjects: list[Subject]):
    heard: list[str] = []
    sayer = Sayer(room=3, error=error() if error is out_of_memory_of_torch else error)
    said = describe_images(sayer, subjects, lambda _event, **fields: heard.append(str(fields.get("text", ""))))
    assert said == EXPECTED
    assert sayer.batches == [2, 2, 2, 2, 2]
    assert [text for text in heard if text] == [
        "sayer: out of memory; going on with batches of 4",
        "sayer: out of memory; going on with batches of 2",
    ]


def test_memory_that_ends_with_one_image_is_an_error_with_a_fix(subjects: list[Subject]):
    with pytest.raises(EnvironmentProblem, match=r"single image .*; fix:"):
        describe_images(Sayer(room=0), subjects, silent)


def test_an_error_that_is_not_of_memory_is_raised_as_it_is(subjects: list[Subject]):
    class Broken(Sayer):
        def describe(self, subjects: Sequence[Subject]) -> list[str]:
            raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        describe_images(Broken(), subjects, silent)


def test_a_damaged_table_of_answers_is_one_line_with_its_path(subjects: list[Subject]):
    describe_images(Sayer(), subjects, silent)
    answers_file().write_bytes(b"no database" * 100)
    with pytest.raises(EnvironmentProblem, match="delete the file") as caught:
        describe_images(Sayer(), subjects, silent)
    assert str(answers_file()) in str(caught.value)
    assert answers_file().read_bytes() == b"no database" * 100


def test_answers_come_back_by_the_thousand(subjects: list[Subject]):
    many = {f"key {index}": f"text {index}" for index in range(3000)}
    with open_answers() as answers:
        answers.write(many)
    with open_answers() as answers:
        assert answers.read(list(many)) == many
        assert answers.read(["unknown"]) == {}
    assert sqlite3.connect(answers_file()).execute("SELECT count(*) FROM answers").fetchone() == (3000,)
