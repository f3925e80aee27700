"""Claims about the pure rules of attempts: batches, cadence, patience, what a state's name means, where to start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_engine_kohya import BASE, make_spec

from brushset.failure import explain_failure, is_out_of_gpu_memory
from brushset.kohya.attempts.cadence import choose_cadence
from brushset.kohya.attempts.history import AttemptRecord, Found, Origin, choose_start, lineage
from brushset.kohya.attempts.states import SavedState, position_of
from brushset.kohya.parse_log import Bar, finished_state, read_bar
from brushset.kohya.plan import Plan, plan_asked, plan_smaller, plan_with
from brushset.kohya.render import render_dataset, render_prompts
from brushset.paths import RunPaths
from brushset.patience import Choice, choose_epoch
from brushset.protocols import TrainJob
from brushset.records import ValidationPoint


def make_job(batches: int, steps: int, **train: Any) -> TrainJob:
    run = RunPaths(Path("/nowhere"))
    return TrainJob(
        make_spec(**train), run, BASE, run.root, run.root, steps, batches, buckets={"a": 10, "b": 5}, repeats=3
    )


def make_plan(per_epoch: int = 10, *, accumulation: int = 1, steps: int = 100) -> Plan:
    return Plan(
        batch_size=4, gradient_accumulation_steps=accumulation, gradient_checkpointing=False,
        batches_per_epoch=per_epoch * accumulation, steps=steps, epochs=-(-steps // per_epoch),
    )  # fmt: skip


def make_state(step: int, *, whole: bool = False) -> SavedState:
    return SavedState(folder=f"s{step}", step=step, epoch=(step - 1) // 10 + 1, whole_epoch=whole, files={})


def make_record(number: int = 1, plan: Plan | None = None, **changes: Any) -> AttemptRecord:
    return AttemptRecord(number=number, log_number=number, plan=plan or make_plan(), **changes)


def test_a_divided_batch_keeps_the_effective_batch_and_counts_its_steps_anew() -> None:
    job = make_job(12, 24, batch_size=4, epochs=2)  # 30 and 15 images: 8 + 4 batches of 4
    half = plan_smaller(job, plan_asked(job))
    assert half == Plan(
        batch_size=2, gradient_accumulation_steps=2, gradient_checkpointing=False, batches_per_epoch=15 + 8, steps=24, epochs=2,
    )  # fmt: skip
    one = plan_smaller(job, half)
    assert one
    assert (one.batch_size, one.gradient_accumulation_steps, one.batches_per_epoch, one.steps) == (1, 4, 45, 24)
    last = plan_smaller(job, one)
    assert last == one.model_copy(update={"gradient_checkpointing": True})
    assert plan_smaller(job, last) is None


@pytest.mark.parametrize(("batch", "tried"), [(6, [3, 1]), (5, [1]), (9, [3, 1]), (8, [4, 2, 1]), (1, [])])
def test_a_batch_is_divided_without_a_rest(batch: int, tried: list[int]) -> None:
    job = make_job(-(-45 // batch), 10, batch_size=batch, max_steps=10)
    plan, sizes = plan_asked(job), []
    while (plan := plan_smaller(job, plan)) and not plan.gradient_checkpointing:  # type: ignore[assignment]
        sizes.append(plan.batch_size)
        assert plan.batch_size * plan.gradient_accumulation_steps == batch
    assert sizes == tried


def test_processes_share_the_batches_of_a_divided_batch_too() -> None:
    job = make_job(6, 12, batch_size=4, processes=2, epochs=2)
    assert plan_with(job, 2, checkpointing=False).batches_per_epoch == 12


def test_states_are_saved_as_often_as_minutes_and_rate_say() -> None:
    def cadence(seconds: float, *, from_step: int = 0, plan: Plan | None = None, **train: Any) -> tuple[Any, ...]:
        spec = make_spec(**{"save_state_minutes": 5.0, **train}).train
        found = choose_cadence(spec, plan or make_plan(), from_step=from_step, seconds_per_step=seconds)
        return found.epochs, found.steps, found.states

    assert cadence(2.0) == (1, None, False)  # 200 s in all: shorter than what a kill may cost
    assert cadence(2.0, save_state_minutes=0.0) == (1, None, False)
    assert cadence(10.0) == (1, None, True)  # an epoch is 100 s
    assert cadence(10.0, save_every_n_epochs=4) == (2, None, True)  # every 3 epochs would miss some that are to be kept
    assert cadence(60.0) == (1, 5, True)  # an epoch is 10 min
    assert cadence(1000.0) == (1, 1, True)
    assert cadence(60.0, plan=make_plan(accumulation=2)) == (1, None, True)  # it cannot be resumed inside an epoch
    assert cadence(60.0, save_every_n_epochs=4, plan=make_plan(accumulation=2)) == (1, None, True)
    assert cadence(10.0, save_every_n_epochs=6, validate_every_n_epochs=4, early_stop_patience=1) == (2, None, True)
    cut_short = make_plan(steps=96)
    assert cadence(2.0, plan=cut_short) == (1, None, False)
    assert cadence(2.0, plan=cut_short, from_step=42) == (
        1,
        56,
        False,
    )  # the last step must be saved: it goes on past it
    assert cadence(60.0, plan=cut_short, from_step=42) == (1, 4, True)
    assert cadence(33.0, plan=make_plan(steps=93), from_step=42) == (1, 53, True)  # 53 is prime: states of epochs only


@given(st.integers(1, 40), st.integers(1, 400), st.integers(0, 399), st.floats(0.01, 5000), st.booleans())
def test_a_resumed_training_that_ends_inside_an_epoch_always_saves_its_last_step(
    per_epoch: int, steps: int, from_step: int, seconds: float, accumulated: bool
) -> None:
    plan = make_plan(per_epoch, steps=steps, accumulation=2 if accumulated else 1)
    from_step = min(from_step, steps - 1)
    found = choose_cadence(make_spec().train, plan, from_step=from_step, seconds_per_step=seconds)
    base_step = from_step // per_epoch * per_epoch
    if from_step and plan.ends_inside_an_epoch:
        assert found.steps
        assert (plan.steps - base_step) % found.steps == 0
    assert found.steps is None or found.steps >= 1
    assert found.epochs >= 1


@pytest.mark.parametrize(
    ("losses", "patience", "expected"),
    [
        ([], 1, None),
        ([3.0], 1, Choice(1, None)),
        ([3.0, 2.0, 1.0], 1, Choice(3, None)),
        ([1.0, 2.0], 1, Choice(1, 2)),
        ([1.0, 1.0], 1, Choice(1, 2)),
        ([3.0, 4.0, 2.0, 5.0, 5.0, 0.0], 2, Choice(3, 5)),
        ([float("nan"), 4.0, 5.0], 1, Choice(2, 3)),
        ([4.0, float("nan")], 1, Choice(1, 2)),
    ],
)
def test_patience_ends_after_so_many_validations_without_a_better_one(
    losses: list[float], patience: int, expected: Choice | None
) -> None:
    points = [ValidationPoint(epoch=index + 1, step=10, loss=loss) for index, loss in enumerate(losses)]
    assert choose_epoch(points[::-1], patience) == expected


def test_a_states_name_means_an_absolute_step() -> None:
    plan = make_plan()

    def position(name: str, base_step: int) -> tuple[int, int, bool] | None:
        found = position_of(name, base_step=base_step, plan=plan)
        return found and (found.step, found.epoch, found.whole_epoch)

    assert position("ink-step00000007-state", 0) == (7, 1, False)
    assert position("ink-step00000007-state", 30) == (37, 4, False)
    assert position("ink-000003-state", 20) == (30, 3, True)
    assert position("ink-state", 0) is None
    assert position("ink-step00000010-state", 90) is None  # nothing is left to train
    assert position("ink-000003", 0) is None


def test_the_furthest_state_is_gone_on_from() -> None:
    first = Found(make_record(1), usable=(make_state(10, whole=True), make_state(15)))
    second = Found(make_record(2), usable=(make_state(20, whole=True),))
    assert choose_start([first, second], make_plan()).origin == Origin(attempt=2, state=make_state(20, whole=True))
    assert choose_start([first, Found(make_record(2))], make_plan()).origin == Origin(attempt=1, state=make_state(15))
    assert choose_start([], make_plan()).origin is None


def test_with_accumulation_only_whole_epochs_are_gone_on_from() -> None:
    plan = make_plan(accumulation=2)
    found = Found(make_record(1, plan), usable=(make_state(10, whole=True), make_state(15)))
    origin = choose_start([found], plan).origin
    assert origin
    assert origin.state.step == 10


def test_a_state_of_an_epochs_last_step_that_lacks_the_epochs_own_file_is_passed_over() -> None:
    found = Found(make_record(1), usable=(make_state(15), make_state(20)))
    origin = choose_start([found], make_plan()).origin
    assert origin
    assert origin.state.step == 15


def test_states_of_another_arithmetic_or_before_a_nan_are_not_gone_on_from() -> None:
    usable = (make_state(15),)
    assert choose_start([Found(make_record(1), usable=usable)], make_plan(11)).origin is None
    diverged = Found(make_record(1, ending="diverged"), usable=usable)
    assert choose_start([diverged], make_plan()).origin is None
    after = Found(make_record(2), usable=(make_state(5),))
    origin = choose_start([diverged, after], make_plan()).origin
    assert origin
    assert (origin.attempt, origin.state.step) == (2, 5)


def test_a_complete_attempt_is_the_result() -> None:
    assert choose_start([Found(make_record(1), complete=True), Found(make_record(2))], make_plan()).done == 1


def test_a_training_is_the_line_of_attempts_that_went_on_from_one_another() -> None:
    records = [
        make_record(1),
        make_record(2, origin=Origin(attempt=1, state=make_state(15))),
        make_record(3),
        make_record(4, origin=Origin(attempt=2, state=make_state(32))),
    ]
    assert [(record.number, until) for record, until in lineage(records, 4)] == [(1, 15), (2, 32), (4, None)]
    assert [record.base_step for record in records] == [0, 10, 0, 30]


def test_held_out_images_are_a_dataset_of_their_own_that_nothing_is_done_to() -> None:
    assert len(render_dataset(make_spec(), 3)["datasets"]) == 1
    trained, validated = render_dataset(make_spec(validate_every_n_epochs=2, flip_aug=True), 3)["datasets"]
    assert "validation_split" not in trained
    assert validated["validation_split"] == 1.0
    assert validated["subsets"] == [{"image_dir": "images/heldout", "num_repeats": 1}]
    assert (validated["flip_aug"], validated["shuffle_caption"], validated["caption_dropout_rate"]) == (
        False,
        False,
        0.0,
    )


def test_sample_prompts_carry_the_trigger_and_all_that_evaluation_says() -> None:
    first = render_prompts(make_spec())[0]
    assert first["prompt"] == "inkstyle, a portrait of a girl"
    assert (first["seed"], first["sample_steps"], first["scale"], first["width"]) == (1, 25, 7.0, 512)


@pytest.mark.parametrize(
    ("line", "phase", "bar"),
    [
        (" 67%|██ | 2/3 [00:00<00:00, 9.1it/s]", "caching latents", Bar("caching latents", 2, 3)),
        (
            "epoch validation steps:  50%|██ | 4/8 [00:00<00:00, 16it/s, val=1.3]",
            "training",
            Bar("validation images", 4, 8),
        ),
        ("read caption: 100%|██| 3/3 [00:00<00:00, 9it/s]", "starting", Bar("read caption", 3, 3)),
        ("steps:  50%|██ | 6/12 [00:01<00:01,  3.97it/s, avr_loss=1.36]", "training", None),
        ("0it [00:00, ?it/s]", "starting", None),
    ],
)
def test_bars_of_other_phases_are_progress(line: str, phase: str, bar: Bar | None) -> None:
    assert read_bar(line, phase) == bar


def test_a_state_is_finished_with_its_random_states() -> None:
    line = "[RANK 0] Random states saved in attempts/d/attempt-001/output/ink-000001-state/random_states_0.pkl"
    assert finished_state(line) == "attempts/d/attempt-001/output/ink-000001-state"
    assert finished_state("[RANK 0] Optimizer state saved in a/ink-000001-state/optimizer.bin") is None


@pytest.mark.parametrize(
    ("lines", "code", "expected"),
    [
        (["torch.cuda.OutOfMemoryError: CUDA out of memory."], 1, ("exit code 1", "out of GPU memory")),
        (["RuntimeError: cuDNN error: CUDNN_STATUS_ALLOC_FAILED"], 1, ("exit code 1", "out of GPU memory")),
        (["ModuleNotFoundError: No module named 'schedulefree'"], 1, ("exit code 1", "the package schedulefree is missing")),
        (["ImportError: No module named 'bitsandbytes'"], 1, ("exit code 1", "bitsandbytes does not fit")),
        (["RuntimeError: CUDA error: no kernel image is available"], 1, ("exit code 1", "not built for this GPU")),
        (["RuntimeError: CUDA error: an illegal memory access"], 1, ("exit code 1", "nvidia-smi")),
        (["No data found. Please verify arguments"], 1, ("exit code 1", "it found no images")),
        (["FileNotFoundError: [Errno 2] No such file or directory: 'images/a.png'"], 1, ("exit code 1", "images/a.png")),
        (["RuntimeError: unable to allocate shared memory(shm)"], 1, ("exit code 1", "data_loader_workers = 0")),
        ([], -9, ("killed by SIGKILL", "main memory ran out")),
        ([], -15, ("killed by SIGTERM", "it said nothing")),
        ([], -99, ("killed by signal 99", "it said nothing")),
    ],
)  # fmt: skip
def test_a_death_is_explained_in_one_line(lines: list[str], code: int, expected: tuple[str, str]) -> None:
    status, cause = explain_failure(lines, code)
    assert status == expected[0]
    assert expected[1] in cause
    assert "\n" not in cause


def test_only_the_gpus_memory_asks_for_a_smaller_batch() -> None:
    assert is_out_of_gpu_memory(["torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."])
    assert not is_out_of_gpu_memory(["RuntimeError: CUDA error: an illegal memory access", "MemoryError"])
