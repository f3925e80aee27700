"""Claims about attempts: a fake trainer that counts as sd-scripts does is killed, starved, stalled and stopped, and what
is published is what an uninterrupted run leaves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lora_files import write_lora
from PIL import Image
from test_engine_kohya import Events, build_without_accelerate, make_spec

from brushset.engines.kohya import KohyaEngine
from brushset.errors import BrushsetError, Interrupted, TrainerFailed, VerificationFailed
from brushset.files import read_json, read_toml, toml_text, write_atomic
from brushset.kohya.attempts import launch, watch
from brushset.kohya.attempts.history import attempt_folder, read_attempts
from brushset.kohya.render import render_dataset, render_training
from brushset.lora.metadata import legacy_hash, model_hash, read_metadata
from brushset.paths import RunPaths
from brushset.protocols import TrainJob
from brushset.records import BaseFile, Trained
from brushset.stages.train import verify_trained

SCRIPT = Path(__file__).parent / "fake_sd_scripts" / "train_network.py"
BASE = BaseFile(name="made up", path="/nowhere", kind="folder", sha256="0" * 64, random=True, narrow=True)
OFTEN = 1e-6


class Rig:
    """Trains with the fake again and again, as the same command would."""

    def __init__(self, root: Path) -> None:
        self.run = RunPaths(root / "runs it's" / "ink" / "one")
        self.run.images.mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(self.run.images / "0.png")
        write_lora(self.run.root / "template.safetensors", dim=4, alpha=2.0)
        self.events = Events()
        self.images = 4

    def job(self, *, anew: bool = False, **train: Any) -> TrainJob:
        own = {"network_dim": 4, "network_alpha": 2.0, "epochs": 3, "repeats": 1, "save_state_minutes": OFTEN}
        spec = make_spec(**{**own, **train})
        write_atomic(self.run.dataset_toml, toml_text(render_dataset(spec, spec.train.repeats or 1)))
        write_atomic(self.run.training_toml, toml_text(render_training(spec)))
        asked = spec.train
        batches = -(-self.images * (asked.repeats or 1) // asked.batch_size)
        per_epoch = -(-batches // asked.gradient_accumulation_steps)
        output = self.run.root / ".tmp-train"
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir()
        return TrainJob(
            spec, self.run, BASE, Path("/nowhere"), output, asked.max_steps or asked.epochs * per_epoch, batches,
            buckets={"64x64": self.images}, repeats=asked.repeats or 1, attempts_dir=self.run.attempts / "d", anew=anew,
        )  # fmt: skip

    def train(self, job: TrainJob, **behaviour: Any) -> Trained:
        (self.run.root / "behaviour.json").write_text(json.dumps({"images": self.images, **behaviour}))
        trained = KohyaEngine(SCRIPT).train(job, self.events)
        verify_trained(job, trained)
        return trained


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    (tmp_path / "sd-scripts").mkdir()
    (tmp_path / "sd-scripts" / "train_network.py").touch()
    monkeypatch.setenv("SD_SCRIPTS_DIR", str(tmp_path / "sd-scripts"))
    monkeypatch.setenv("BRUSHSET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(launch, "build_command", build_without_accelerate)
    return Rig(tmp_path)


def shape(trained: Trained) -> object:
    """All that an interruption must not change."""
    return (
        trained.steps,
        trained.epochs,
        [(item.path, item.epoch, item.step) for item in trained.checkpoints],
        [(point.step, round(point.loss, 6)) for point in trained.losses],
    )


@pytest.mark.parametrize(
    ("settings", "deaths"),
    [
        ({}, [2, 5, 9]),
        ({}, [4, 8, 11]),
        ({"gradient_accumulation_steps": 2}, [3, 5, 5]),
        ({"max_steps": 10}, [3, 6, 9]),
        ({"max_steps": 10, "gradient_accumulation_steps": 2, "repeats": 2}, [5, 9, 9]),
        ({"save_every_n_epochs": 2, "epochs": 5}, [3, 10, 18]),
        ({"save_state_minutes": 0.0}, [2, 11, 4]),
    ],
)
def test_a_training_killed_three_times_leaves_what_an_uninterrupted_one_leaves(
    rig: Rig, tmp_path: Path, settings: dict[str, Any], deaths: list[int]
) -> None:
    other = Rig(tmp_path / "whole")
    whole = other.train(other.job(**settings))
    for step in deaths:
        with pytest.raises(TrainerFailed):
            rig.train(rig.job(**settings), die_after=step)
    job = rig.job(**settings)
    trained = rig.train(job)
    assert shape(trained) == shape(whole)
    assert [item.number for item in trained.attempts] == [1, 2, 3, 4]
    assert [item.ending for item in trained.attempts[:3]] == ["failed"] * 3
    for item in (*trained.checkpoints, trained):
        name, step = (item.path, item.step) if not isinstance(item, Trained) else (item.weights, item.steps)
        metadata = read_metadata(job.output_dir / name)
        assert metadata["ss_steps"] == str(step)
        assert model_hash(job.output_dir / name) == model_hash(rig.run.root / "template.safetensors")
        assert metadata.get("sshs_legacy_hash", "") in ("", legacy_hash(job.output_dir / name))


def test_every_attempt_keeps_its_folder_and_its_log(rig: Rig) -> None:
    for step in (3, 6):
        with pytest.raises(TrainerFailed):
            rig.train(rig.job(), die_after=step)
    trained = rig.train(rig.job())
    assert [(item.from_step, item.to_step, item.log) for item in trained.attempts] == [
        (0, 3, "logs/train-001.log"),
        (3, 6, "logs/train-002.log"),
        (6, 12, "logs/train.log"),
    ]
    logs = [(rig.run.root / item.log).read_text() for item in trained.attempts]
    assert ["model saved." in text for text in logs] == [False, False, True]
    argv = read_json(rig.run.config / "command.json")["argv"]
    assert argv[argv.index("--resume") + 1] == "attempts/d/attempt-002/output/ink-step00000006-state"
    assert argv[argv.index("--initial_step") + 1] == "6"
    assert "--skip_until_initial_step" in argv
    assert tuple(argv) == trained.command


def test_steps_in_events_are_absolute(rig: Rig) -> None:
    with pytest.raises(TrainerFailed):
        rig.train(rig.job(), die_after=6)
    rig.events.clear()
    rig.train(rig.job(), pause=0.02)
    told = rig.events.of("train_step")
    assert [item["step"] for item in told] == [7, 8, 9, 10, 11, 12]
    assert {item["total"] for item in told} == {12}
    assert [item["epoch"] for item in told] == [2, 2, 3, 3, 3, 3]
    assert told[-1]["lr"] == pytest.approx(1e-4)
    assert told[-1]["loss"] == pytest.approx(1 / 12)


def test_a_state_cut_off_while_it_was_written_is_not_used(rig: Rig) -> None:
    with pytest.raises(TrainerFailed):
        rig.train(rig.job(), die_in_state="ink-step00000003-state")
    trained = rig.train(rig.job())
    assert [item.from_step for item in trained.attempts] == [0, 2]


def spoil_hash(folder: Path) -> None:
    (folder / "optimizer.bin").write_text("something else")


def lose_a_file(folder: Path) -> None:
    (folder / "scheduler.bin").unlink()


def add_a_file(folder: Path) -> None:
    (folder / "custom_checkpoint_0.pkl").write_text("runs code when it is loaded")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (spoil_hash, "optimizer.bin is not what was saved"),
        (lose_a_file, "scheduler.bin is missing"),
        (add_a_file, "custom_checkpoint_0.pkl was not saved by the trainer"),
    ],
)
def test_a_state_that_is_not_as_it_was_saved_gives_way_to_the_older_one(
    rig: Rig, spoil: Callable[[Path], None], says: str
) -> None:
    with pytest.raises(TrainerFailed):
        rig.train(rig.job(), die_after=3)
    spoil(attempt_folder(rig.run.attempts / "d", 1).output / "ink-step00000003-state")
    trained = rig.train(rig.job())
    assert [item.from_step for item in trained.attempts] == [0, 2]
    assert any(says in str(item["text"]) for item in rig.events.of("warning"))


def test_where_no_state_is_left_training_starts_anew_and_says_so(rig: Rig) -> None:
    with pytest.raises(TrainerFailed):
        rig.train(rig.job(), die_after=3)
    for folder in attempt_folder(rig.run.attempts / "d", 1).output.glob("*-state"):
        spoil_hash(folder)
    trained = rig.train(rig.job())
    assert [item.from_step for item in trained.attempts] == [0, 0]
    assert any("training starts anew" in str(item["text"]) for item in rig.events.of("note"))


def test_two_states_are_kept(rig: Rig) -> None:
    with pytest.raises(TrainerFailed):
        rig.train(rig.job(), die_after=7)
    output = attempt_folder(rig.run.attempts / "d", 1).output
    assert sorted(path.name for path in output.glob("*-state")) == ["ink-step00000006-state", "ink-step00000007-state"]
    assert not list(output.glob("ink-step*.safetensors"))
    with pytest.raises(TrainerFailed):
        rig.train(rig.job(), die_after=8)
    left = sorted(path.relative_to(rig.run.attempts).as_posix() for path in rig.run.attempts.glob("**/*-state"))
    assert left[-1].startswith("d/attempt-002/")
    assert len(left) == 2


def test_a_weights_file_lost_since_sends_training_back_before_it(rig: Rig) -> None:
    with pytest.raises(TrainerFailed):
        rig.train(rig.job(gradient_accumulation_steps=2, epochs=5), die_after=7)
    (attempt_folder(rig.run.attempts / "d", 1).output / "ink-000003.safetensors").write_bytes(b"cut")
    trained = rig.train(rig.job(gradient_accumulation_steps=2, epochs=5))
    assert [item.from_step for item in trained.attempts] == [0, 4]


def test_a_finished_training_that_was_not_published_is_not_trained_again(rig: Rig) -> None:
    rig.train(rig.job())
    began = rig.events.of("attempt")
    trained = rig.train(rig.job())
    assert rig.events.of("attempt") == began
    assert trained.steps == 12


def test_an_interruption_is_written_down_and_gone_on_from(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(event: str, /, **fields: object) -> None:
        if event == "train_step" and fields["step"] == 4:
            raise Interrupted(15)

    with monkeypatch.context() as patch:
        patch.setattr(rig, "events", interrupt)
        with pytest.raises(Interrupted):
            rig.train(rig.job(), pause=0.1)
    (record,) = read_attempts(rig.run.attempts / "d")
    assert record.ending == "interrupted"
    trained = rig.train(rig.job())
    assert trained.attempts[1].from_step >= 3
    assert trained.steps == 12


def test_a_batch_too_large_is_halved_and_accumulated(rig: Rig) -> None:
    trained = rig.train(rig.job(batch_size=4, repeats=4), fits=1)
    assert [(item.batch_size, item.gradient_accumulation_steps, item.ending) for item in trained.attempts] == [
        (4, 1, "out of memory"), (2, 2, "out of memory"), (1, 4, "finished"),
    ]  # fmt: skip
    assert trained.steps == 12
    own = attempt_folder(rig.run.attempts / "d", 3).root
    assert read_toml(own / "dataset.toml")["datasets"][0]["batch_size"] == 1
    assert read_toml(own / "training.toml")["training"]["gradient_accumulation_steps"] == 4
    assert trained.command[trained.command.index("--dataset_config") + 1] == "attempts/d/attempt-003/dataset.toml"
    assert sum("too much for the GPU's memory" in str(item["text"]) for item in rig.events.of("warning")) == 2


def test_gradient_checkpointing_is_the_last_that_is_tried(rig: Rig) -> None:
    trained = rig.train(rig.job(batch_size=2, repeats=2), fits=0, checkpointing_helps=True)
    assert [(item.batch_size, item.gradient_checkpointing) for item in trained.attempts] == [
        (2, False), (1, False), (1, True),
    ]  # fmt: skip


def test_what_never_fits_is_told_after_the_last_try(rig: Rig) -> None:
    with pytest.raises(TrainerFailed, match="out of GPU memory"):
        rig.train(rig.job(batch_size=2), fits=0)
    assert len(read_attempts(rig.run.attempts / "d")) == 3


def test_no_smaller_batch_is_tried_where_the_style_forbids_it(rig: Rig) -> None:
    with pytest.raises(TrainerFailed, match="out of GPU memory"):
        rig.train(rig.job(batch_size=2, retry_out_of_memory=False), fits=1)
    assert len(read_attempts(rig.run.attempts / "d")) == 1


def test_the_limit_is_remembered_until_a_setting_changes_or_training_is_forced(rig: Rig) -> None:
    rig.train(rig.job(batch_size=4, repeats=4), fits=2)

    def batches_tried(**settings: Any) -> list[int]:
        shutil.rmtree(rig.run.attempts)
        return [item.batch_size for item in rig.train(rig.job(repeats=4, **settings), fits=2).attempts]

    assert batches_tried(batch_size=4) == [2]
    assert any("as memory allowed before" in str(item["text"]) for item in rig.events.of("note"))
    assert batches_tried(batch_size=4, anew=True) == [4, 2]
    assert batches_tried(batch_size=4, network_alpha=2.0, vae_batch_size=1) == [4, 2]
    assert batches_tried(batch_size=2) == [2]


def test_memory_that_ran_out_after_a_while_is_tried_once_more_as_it_was(rig: Rig) -> None:
    with pytest.raises(TrainerFailed):
        rig.train(rig.job(batch_size=2, repeats=2), die_after=5)
    folder = attempt_folder(rig.run.attempts / "d", 1)
    record = folder.read()
    assert record
    folder.write(record.model_copy(update={"ending": "out of memory"}))
    trained = rig.train(rig.job(batch_size=2, repeats=2))
    assert [(item.batch_size, item.from_step) for item in trained.attempts] == [(2, 0), (2, 5)]


def test_a_nan_loss_ends_it_and_is_not_gone_on_from(rig: Rig) -> None:
    with pytest.raises(VerificationFailed, match="loss became NaN by step 4 of 12"):
        rig.train(rig.job(), nan_from=4, pause=0.05)
    assert read_attempts(rig.run.attempts / "d")[0].ending == "diverged"
    assert [item.from_step for item in rig.train(rig.job()).attempts] == [0, 0]


def test_a_stalled_trainer_is_reported_and_by_option_ended(rig: Rig) -> None:
    with pytest.raises(TrainerFailed, match=r"no progress for .* min and was stopped; fix: .*; log: "):
        rig.train(rig.job(stall_minutes=0.02, stall_ends=True), hang_after=3)
    assert [item.from_step for item in rig.train(rig.job(stall_minutes=0.02, stall_ends=True)).attempts] == [0, 3]


def test_a_stall_is_told_once_an_interval() -> None:
    now = [0.0]
    stall = watch.Stall(1.0, ends=False, log_path=Path("a.log"), clock=lambda: now[0])
    told = []
    for now[0] in range(0, 200, 10):
        told.append(bool(stall.check()))
    assert [index * 10 for index, said in enumerate(told) if said] == [60, 120, 180]
    stall.moved()
    assert stall.check() == ""


def test_a_length_that_was_not_planned_ends_at_once(rig: Rig) -> None:
    job = rig.job()
    rig.images = 5
    with pytest.raises(
        VerificationFailed, match="would train 15 steps of 5 batches an epoch, and 12 of 4 were planned"
    ):
        rig.train(job)


@pytest.mark.parametrize(
    ("losses", "best", "epochs"), [([3, 2, 4, 5, 1, 1], 2, 4), ([3, 2, 1, 1, 1, 9], 3, 5), ([6, 5, 4, 3, 2, 3], 5, 6)]
)
def test_the_best_epoch_is_kept_and_hope_is_given_up(rig: Rig, losses: list[float], best: int, epochs: int) -> None:
    settings = {"epochs": 6, "validate_every_n_epochs": 1, "early_stop_patience": 2, "save_every_n_epochs": 3}
    job = rig.job(**settings)
    trained = rig.train(job, validation=losses, pause=0.3)
    assert (trained.best_epoch, trained.epochs, trained.steps) == (best, epochs, 4 * epochs)
    assert bool(trained.stopped_early) == (epochs < 6)
    assert read_metadata(job.output_dir / trained.weights)["ss_epoch"] == str(best)
    kept = [item.epoch for item in trained.checkpoints]
    assert kept == sorted({*range(3, epochs, 3), *([epochs] if best != epochs else [])})
    assert [point.epoch for point in trained.validation] == list(range(1, epochs + 1))


def test_a_decision_of_validation_outlives_a_kill(rig: Rig) -> None:
    settings = {"epochs": 6, "validate_every_n_epochs": 1, "early_stop_patience": 2, "gradient_accumulation_steps": 2}
    with pytest.raises(TrainerFailed):
        rig.train(rig.job(**settings), validation=[3, 2, 4, 4, 4, 4], die_after=6)
    trained = rig.train(rig.job(**settings), validation=[3, 2, 4, 5, 1, 1], pause=0.3)
    assert (trained.best_epoch, trained.epochs) == (2, 4)
    assert [item.from_step for item in trained.attempts] == [0, 4]


def test_a_claim_to_have_stopped_early_is_not_believed(rig: Rig) -> None:
    settings = {"epochs": 4, "validate_every_n_epochs": 1, "early_stop_patience": 1}
    job = rig.job(**settings)
    trained = rig.train(job, validation=[2, 3, 1, 1], pause=0.3)
    for lie in ({"best_epoch": 2}, {"steps": 12}, {"stopped_early": ""}, {"validation": trained.validation[:1]}):
        with pytest.raises(VerificationFailed):
            verify_trained(job, trained.model_copy(update=lie))


def test_an_attempt_with_another_effective_batch_is_not_believed(rig: Rig) -> None:
    job = rig.job(batch_size=2)
    trained = rig.train(job)
    for lie in ({"batch_size": 1}, {"gradient_accumulation_steps": 2}, {"batch_size": 3}):
        last = trained.attempts[-1].model_copy(update=lie)
        with pytest.raises(VerificationFailed, match="not the style's effective batch of 2"):
            verify_trained(job, trained.model_copy(update={"attempts": (last,)}))


def test_samples_of_all_attempts_are_collected(rig: Rig) -> None:
    with pytest.raises(TrainerFailed):
        rig.train(rig.job(sample_every_n_epochs=1), die_after=6)
    job = rig.job(sample_every_n_epochs=1)
    trained = rig.train(job)
    prompts = len(job.spec.evaluate.shown)
    assert [item.epoch for item in trained.samples] == [epoch for epoch in (1, 2, 3) for _ in range(prompts)]
    assert trained.samples[0].prompt == "inkstyle, a portrait of a girl"
    assert all((job.output_dir / item.path).is_file() for item in trained.samples)


def test_errors_are_of_our_kind() -> None:
    assert issubclass(watch.LossDiverged, BrushsetError)
    assert not issubclass(watch.EnoughTrained, BrushsetError)
