"""An interrupted training goes on, equal to the last bit; several styles trained together are told apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from native_case import make_run, settings_of, write_pair
from safetensors.torch import load_file

from brushset.engines.native import NativeEngine
from brushset.errors import BrushsetError, InputError, TrainerFailed
from brushset.files import sha256_file
from brushset.native.dataset import plan_length, read_training_set
from brushset.paths import RunPaths
from brushset.protocols import Emit, TrainJob
from brushset.records import BaseFile, Trained
from brushset.spec import StyleSpec, TrainSection

RECIPE: dict[str, Any] = {
    "network_train_unet_only": True,
    "gradient_accumulation_steps": 2,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 1,
    "max_train_epochs": 4,
    "save_every_n_epochs": 2,
}


class Stop(Exception):
    """Ends a training between two steps, as a signal would."""


class Heard:
    """Keeps what it is told, and ends the training at a step."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._stop_after = stop_after

    def __call__(self, event: str, /, **fields: object) -> None:
        self.events.append((event, fields))
        if event == "train_step" and fields["step"] == self._stop_after:
            raise Stop

    def texts(self, kind: str) -> list[str]:
        return [str(fields["text"]) for event, fields in self.events if event == kind]

    @property
    def steps(self) -> list[object]:
        return [fields["step"] for event, fields in self.events if event == "train_step"]


def job_for(run: RunPaths, base: BaseFile, *, name: str = "cartoon", out: str = "out") -> TrainJob:
    settings = settings_of(run)
    length = plan_length(read_training_set(settings).plan, settings.dataset, settings.training)
    spec = StyleSpec(name=name, trigger="cartoonstyle", train=TrainSection(engine="native", save_state_minutes=1e-9))
    folder = run.root / out
    return TrainJob(spec, run, base, Path(), folder, length.steps, length.batches_per_epoch)


def train_packed(jobs: list[tuple[TrainJob, Emit]]) -> list[Trained | BrushsetError]:
    """What came of each, in their order."""
    endings = dict(NativeEngine("cpu").train_together(jobs))
    return [endings[index] for index in range(len(jobs))]


def same(first: Trained, second: Trained, folders: tuple[Path, Path]) -> None:
    """The same files, curve and record, but for times."""
    assert first.losses == second.losses
    names = [(c.path, c.epoch, c.step) for c in first.checkpoints]
    assert names == [(c.path, c.epoch, c.step) for c in second.checkpoints]
    for name in (first.weights, *(c.path for c in first.checkpoints)):
        ours, theirs = load_file(folders[0] / name), load_file(folders[1] / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Of all `up` weights, which began at zero, relative to how far they went. Of float32, where Adam makes
    much of last digits; tests/test_native_packed.py has float64.
    """
    keys = [key for key in expected if key.endswith("up.weight")]
    ours, theirs = (torch.cat([tensors[key].flatten() for key in keys]) for tensors in (found, expected))
    print(f"relative difference {((ours - theirs).norm() / theirs.norm()).item():.1e}")
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("optimizer", ["AdamW", "Prodigy", "Lion"])
def test_interrupted_at_any_step_it_ends_with_the_same_bits(
    tmp_path: Path, tiny_base: BaseFile, optimizer: str
) -> None:
    rate = 1.0 if optimizer == "Prodigy" else 1e-3
    run = make_run(tmp_path, {"caption_dropout_rate": 0.3}, {**RECIPE, "optimizer_type": optimizer, "unet_lr": rate})
    engine = NativeEngine("cpu")
    whole_job = replace(job_for(run, tiny_base), attempts_dir=tmp_path / "none", output_dir=tmp_path / "whole")
    whole = engine.train(whole_job, Heard())
    assert whole.steps == 8
    stops = [(2,), (5,), (3, 7)] if optimizer == "AdamW" else [(5,)]
    for number, stops_after in enumerate(stops):
        attempts = tmp_path / f"attempts {number}"
        for stop in stops_after:
            job = replace(job_for(run, tiny_base, out=f"{number}-{stop}"), attempts_dir=attempts)
            with pytest.raises(Stop):
                engine.train(job, Heard(stop))
        heard = Heard()
        job = replace(job_for(run, tiny_base, out=f"{number}-end"), attempts_dir=attempts)
        gone_on = engine.train(job, heard)
        assert heard.steps == list(range(stops_after[-1], 9))
        assert heard.texts("note") == [f"cartoon: goes on from step {stops_after[-1] - 1} of 8"]
        same(gone_on, whole, (job.output_dir, whole_job.output_dir))
        assert [c.sha256 for c in gone_on.checkpoints] == [
            sha256_file(job.output_dir / c.path) for c in gone_on.checkpoints
        ]
        assert gone_on.seconds > 0


def interrupted(run: RunPaths, base: BaseFile) -> TrainJob:
    """A job whose attempt was stopped after step 6."""
    with pytest.raises(Stop):
        NativeEngine("cpu").train(job_for(run, base), Heard(6))
    return job_for(run, base, out="again")


def test_a_forced_training_begins_anew(tmp_path: Path, tiny_base: BaseFile) -> None:
    heard = Heard()
    job = interrupted(make_run(tmp_path, {}, RECIPE), tiny_base)
    NativeEngine("cpu").train(replace(job, anew=True), heard)
    assert heard.steps == list(range(1, 9))


@pytest.mark.parametrize("damage", ["cut", "other recipe", "epoch gone", "epoch changed"])
def test_a_state_that_cannot_be_gone_on_from_is_named_and_training_begins_anew(
    tmp_path: Path, tiny_base: BaseFile, damage: str
) -> None:
    run = make_run(tmp_path, {}, RECIPE)
    job = interrupted(run, tiny_base)
    state = job.attempts / "native" / "state.safetensors"
    epoch = state.with_name("cartoon-000002.safetensors")
    assert epoch.is_file()
    if damage == "cut":
        state.write_bytes(state.read_bytes()[:1000])
    elif damage == "other recipe":
        write_pair(run, {}, {**RECIPE, "unet_lr": 5e-4})
    elif damage == "epoch gone":
        epoch.unlink()
    else:
        epoch.unlink()
        epoch.write_bytes(b"x")
    heard = Heard()
    trained = NativeEngine("cpu").train(job, heard)
    assert heard.steps == list(range(1, 9))
    (warning,) = heard.texts("warning")
    assert warning.startswith("training begins anew: ")
    assert str(epoch if "epoch" in damage else state) in warning
    assert len(trained.losses) == 8


def test_without_save_state_minutes_no_state_is_kept(tmp_path: Path, tiny_base: BaseFile) -> None:
    run = make_run(tmp_path, {}, RECIPE)
    job = job_for(run, tiny_base)
    train = job.spec.train.model_copy(update={"save_state_minutes": 0.0})
    job = replace(job, spec=job.spec.model_copy(update={"train": train}))
    with pytest.raises(Stop):
        NativeEngine("cpu").train(job, Heard(5))
    assert not job.attempts.exists()


def test_styles_trained_together_leave_what_each_leaves_alone(tmp_path: Path, tiny_base: BaseFile) -> None:
    jobs: list[tuple[TrainJob, Emit]] = []
    for name, changes in (("a", {"seed": 1}), ("b", {"seed": 2, "max_train_epochs": 3}), ("c", {"loss_type": "l1"})):
        run = make_run(tmp_path / name, {}, {**RECIPE, "output_name": name, **changes})
        jobs.append((job_for(run, tiny_base, name=name), Heard()))
    broken = make_run(tmp_path / "d", {}, RECIPE)
    jobs.append((job_for(broken, tiny_base, name="d"), Heard()))
    (broken.images / "0.txt").write_bytes(b"\xff")
    results = train_packed(jobs)
    assert isinstance(results[3], InputError)
    for (job, heard), trained in zip(jobs[:3], results[:3], strict=True):
        assert isinstance(trained, Trained)
        assert isinstance(heard, Heard)
        alone_job = replace(job, output_dir=tmp_path / f"{job.spec.name} alone", attempts_dir=tmp_path / "none")
        alone = NativeEngine("cpu").train(alone_job, Heard())
        assert (trained.steps, trained.epochs, trained.modules) == (alone.steps, alone.epochs, alone.modules)
        assert heard.steps == list(range(1, trained.steps + 1))
        assert [p.loss for p in trained.losses] == pytest.approx([p.loss for p in alone.losses], rel=1e-4)
        assert [p.lr for p in trained.losses] == [p.lr for p in alone.losses]
        found, expected = load_file(job.output_dir / trained.weights), load_file(alone_job.output_dir / alone.weights)
        assert found.keys() == expected.keys()
        assert difference(found, expected) < 0.02
    notes = [text for _, heard in jobs if isinstance(heard, Heard) for text in heard.texts("note")]
    apart = [text for text in notes if "trained after" in text]
    assert apart == ["c is trained after a, not beside it: loss_type l1 instead of l2"]


def test_a_style_that_fails_leaves_the_others_to_their_end(tmp_path: Path, tiny_base: BaseFile) -> None:
    jobs: list[tuple[TrainJob, Emit]] = []
    for name, rate in (("a", 1e-3), ("b", 1e30)):
        run = make_run(tmp_path / name, {}, {**RECIPE, "output_name": name, "unet_lr": rate, "learning_rate": rate})
        jobs.append((job_for(run, tiny_base, name=name), Heard()))
    well, failed = train_packed(jobs)
    assert isinstance(failed, TrainerFailed)
    assert isinstance(failed, BrushsetError)
    assert "the loss is nan" in str(failed) or "the loss is inf" in str(failed)
    assert "stopped: TrainerFailed" in jobs[1][0].run.train_log.read_text(encoding="utf-8")
    assert isinstance(well, Trained)
    assert well.steps == 8


def test_a_packed_training_that_was_interrupted_goes_on_to_the_same_bits(tmp_path: Path, tiny_base: BaseFile) -> None:
    def jobs(out: str, stop: int | None) -> list[tuple[TrainJob, Emit]]:
        runs = [RunPaths(tmp_path / name) for name in ("a", "b")]
        return [
            (job_for(run, tiny_base, name=run.root.name, out=out), Heard(stop if run.root.name == "b" else None))
            for run in runs
        ]

    for number, name in enumerate(("a", "b")):
        make_run(tmp_path / name, {}, {**RECIPE, "output_name": name, "seed": number})
    with pytest.raises(Stop):
        train_packed(jobs("first", 5))
    again = jobs("second", None)
    went_on = train_packed(again)
    whole_jobs = [
        (
            replace(job, attempts_dir=tmp_path / "none" / job.spec.name, output_dir=tmp_path / "whole" / job.spec.name),
            emit,
        )
        for job, emit in jobs("whole", None)
    ]
    whole = train_packed(whole_jobs)
    for (job, heard), (whole_job, _), one, other in zip(again, whole_jobs, went_on, whole, strict=True):
        assert isinstance(heard, Heard)
        assert heard.texts("note")[0].startswith(f"{job.spec.name}: goes on from step ")
        assert isinstance(one, Trained)
        assert isinstance(other, Trained)
        same(one, other, (job.output_dir, whole_job.output_dir))
