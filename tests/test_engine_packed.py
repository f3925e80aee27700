"""The native engine with several jobs: each one's result is its own, whatever the others do and whether all fit at once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from native_case import make_run
from safetensors.torch import load_file
from test_native_resume import Heard, difference, job_for

from brushset.engines.native import NativeEngine
from brushset.errors import EnvironmentProblem, InputError, TrainerFailed
from brushset.files import sha256_file
from brushset.native import packed
from brushset.native.training import Training
from brushset.protocols import TrainJob
from brushset.records import BaseFile, Trained

RECIPE: dict[str, Any] = {"network_train_unet_only": True, "max_train_epochs": 2, "network_dim": 2}
Jobs = list[tuple[TrainJob, Heard]]


def make_jobs(root: Path, base: BaseFile, recipes: dict[str, dict[str, Any]], *, style: str = "") -> Jobs:
    """A job a recipe, in a run folder of its own; of one style each, or all of one."""
    jobs = []
    for folder, changes in recipes.items():
        run = make_run(root / folder, {}, {**RECIPE, "output_name": style or folder, **changes})
        jobs.append((job_for(run, base, name=style or folder), Heard()))
    return jobs


def train(jobs: Jobs) -> list[Any]:
    """What came of each, in their order."""
    endings = dict(NativeEngine("cpu").train_together(jobs))
    assert set(endings) == set(range(len(jobs)))
    return [endings[index] for index in range(len(jobs))]


def alone(root: Path, job: TrainJob) -> tuple[Trained, Path]:
    """What the job leaves by itself."""
    own = replace(job, output_dir=root / "alone" / job.run.root.name, attempts_dir=root / "none")
    trained = NativeEngine("cpu").train(own, Heard())
    return trained, own.output_dir / trained.weights


def test_seeds_and_rates_of_one_style_are_trained_in_one_pass(tmp_path: Path, tiny_base: BaseFile) -> None:
    recipes = {"seed 1": {"seed": 1}, "seed 2": {"seed": 2}, "faster": {"seed": 1, "unet_lr": 4e-3}}
    jobs = make_jobs(tmp_path, tiny_base, recipes, style="cartoon")
    results = train(jobs)
    assert not [text for _, heard in jobs for text in heard.texts("note") if "trained after" in text]
    found = []
    for (job, heard), trained in zip(jobs, results, strict=True):
        assert heard.steps == list(range(1, trained.steps + 1))
        path = job.output_dir / trained.weights
        assert path.name == "cartoon.safetensors"
        assert trained.weights_sha256 == sha256_file(path)
        theirs, expected = alone(tmp_path, job)
        assert [point.loss for point in trained.losses] == pytest.approx([p.loss for p in theirs.losses], rel=1e-4)
        assert difference(load_file(path), load_file(expected)) < 0.02
        found.append(load_file(path))
    assert difference(found[1], found[0]) > 0.1
    assert difference(found[2], found[0]) > 0.1


def test_passes_and_memory_are_foretold(tmp_path: Path, tiny_base: BaseFile, monkeypatch: pytest.MonkeyPatch) -> None:
    from brushset.native.step import Pack

    passes: list[int] = []
    add = Pack.add_gradients
    monkeypatch.setattr(Pack, "add_gradients", lambda pack, draws: (passes.append(len(draws)), add(pack, draws))[1])
    jobs = make_jobs(tmp_path, tiny_base, {"ink": {}, "chalk": {"max_train_epochs": 1, "seed": 5}})
    train(jobs)
    batches, fewer = sum(passes), f"{100 * (sum(passes) - len(passes)) / sum(passes):.0f}"
    foretold, memory = jobs[0][1].texts("note")
    assert batches == 9
    assert len(passes) < 9
    assert foretold == f"2 styles: 9 batches in {len(passes)} passes, {fewer} % fewer"
    assert re.fullmatch(r"a style takes \d+ MB beside the models, and what its batches take", memory)
    assert not jobs[1][1].texts("note"), "it is said once"
    for job, _ in jobs:
        assert foretold in (log := job.run.train_log.read_text(encoding="utf-8"))
        assert memory in log


def test_one_style_alone_foretells_nothing(tmp_path: Path, tiny_base: BaseFile) -> None:
    ((job, heard),) = make_jobs(tmp_path, tiny_base, {"ink": {"max_train_epochs": 1}})
    train([(job, heard)])
    assert not heard.texts("note")


def test_each_ends_when_its_own_training_does(tmp_path: Path, tiny_base: BaseFile) -> None:
    jobs = make_jobs(tmp_path, tiny_base, {"long": {"max_train_epochs": 3}, "short": {"max_train_epochs": 1}})
    endings = NativeEngine("cpu").train_together(jobs)
    index, trained = next(endings)
    assert index == 1
    assert isinstance(trained, Trained)
    assert (jobs[1][0].output_dir / trained.weights).is_file()
    assert len(jobs[0][1].steps) < 9
    assert [index for index, _ in endings] == [0]
    assert len(jobs[0][1].steps) == 9


def test_an_image_that_cannot_be_decoded_fails_its_style_alone(tmp_path: Path, tiny_base: BaseFile) -> None:
    jobs = make_jobs(tmp_path, tiny_base, {"ink": {}, "chalk": {}, "oil": {}})
    image = jobs[0][0].run.images / "2.png"
    image.write_bytes(image.read_bytes()[:2000])  # its size can be read, its pixels cannot
    failed, *well = train(jobs)
    assert isinstance(failed, InputError)
    assert str(image) in str(failed)
    assert "stopped: InputError" in jobs[0][0].run.train_log.read_text(encoding="utf-8")
    assert all(isinstance(trained, Trained) for trained in well)


def test_a_file_that_cannot_be_written_fails_its_style_alone(
    tmp_path: Path, tiny_base: BaseFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = make_jobs(tmp_path, tiny_base, {"ink": {}, "chalk": {}})
    write = Training._keep

    def fill_disk(training: Training, **how: Any) -> None:
        if training.job.spec.name == "ink":
            raise OSError(28, "No space left on device", "/full")
        write(training, **how)

    monkeypatch.setattr(Training, "_keep", fill_disk)
    failed, well = train(jobs)
    assert isinstance(failed, EnvironmentProblem)
    assert str(failed) == "/full: No space left on device"
    assert max(jobs[0][1].steps) == 3, "it was trained no further"
    assert isinstance(well, Trained)


@pytest.fixture
def small_gpu(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A GPU with room for one adapter. Returns what was tried at once."""
    tried: list[list[str]] = []
    shrink(monkeypatch, tried, places=1)
    return tried


def shrink(monkeypatch: pytest.MonkeyPatch, tried: list[list[str]], *, places: int) -> None:
    from brushset.native.step import Pack

    add = Pack.add_gradients

    def add_gradients(pack: Pack, draws: Any) -> torch.Tensor:
        if len(pack.adapters) > places:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return add(pack, draws)

    start = packed.train_at_once

    def train_at_once(trainings: dict[int, Training], device: str | None) -> Iterator[Any]:
        tried.append([training.job.spec.name for training in trainings.values()])
        return start(trainings, device)

    monkeypatch.setattr(Pack, "add_gradients", add_gradients)
    monkeypatch.setattr("brushset.engines.native.train_at_once", train_at_once)


def test_a_pack_that_does_not_fit_is_halved_until_it_does(
    tmp_path: Path, tiny_base: BaseFile, small_gpu: list[list[str]]
) -> None:
    jobs = make_jobs(tmp_path, tiny_base, {"ink": {"seed": 1}, "chalk": {"seed": 2}, "oil": {"seed": 3}})
    results = train(jobs)
    assert small_gpu == [["ink", "chalk", "oil"], ["ink", "chalk"], ["ink"], ["chalk"], ["oil"]]
    assert jobs[0][1].texts("warning") == [
        "3 styles at once do not fit into memory: ink, chalk now, oil after that",
        "2 styles at once do not fit into memory: ink now, chalk after that",
    ]
    for (job, heard), trained in zip(jobs, results, strict=True):
        assert isinstance(trained, Trained)
        assert heard.steps == list(range(1, trained.steps + 1))
        _, expected = alone(tmp_path, job)
        ours, theirs = load_file(job.output_dir / trained.weights), load_file(expected)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_one_style_that_does_not_fit_is_told_in_one_line_with_the_fix(
    tmp_path: Path, tiny_base: BaseFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrink(monkeypatch, [], places=0)
    (failed,) = train(make_jobs(tmp_path, tiny_base, {"ink": {}}))
    assert isinstance(failed, TrainerFailed)
    assert str(failed) == (
        "ink: [train] batch_size = 4 at 512 px does not fit into memory; fix: --batch-size 2 "
        "--set train.gradient_accumulation_steps=2, or --set train.gradient_checkpointing=true"
    )
    assert "Tried to allocate 2.00 GiB" in failed.detail


def test_what_an_attempt_held_is_freed_before_the_next(
    tmp_path: Path, tiny_base: BaseFile, small_gpu: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import weakref

    from brushset.engines import native

    packs: list[weakref.ref[Any]] = []
    alive: list[int] = []
    start, free = Training.start, native.free_memory

    def note(training: Training, session: Any, *more: Any) -> None:
        packs.append(weakref.ref(session.pack))
        start(training, session, *more)

    def count() -> None:
        free()
        alive.append(sum(pack() is not None for pack in packs))

    monkeypatch.setattr(Training, "start", note)
    monkeypatch.setattr(native, "free_memory", count)
    train(make_jobs(tmp_path, tiny_base, {"ink": {}, "chalk": {}}))
    assert alive == [0]
    assert len(packs) == 4


def test_another_error_of_the_pass_is_not_taken_for_full_memory(
    tmp_path: Path, tiny_base: BaseFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Sequence[object]:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr("brushset.native.step.Pack.add_gradients", fail)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        train(make_jobs(tmp_path, tiny_base, {"ink": {}, "chalk": {}}))
