"""One attempt: the trainer is started, followed, and how it ended is written down, whatever it was."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from brushset.errors import Interrupted, TrainerFailed, VerificationFailed
from brushset.failure import is_out_of_gpu_memory
from brushset.files import write_json
from brushset.kohya.attempts import experience
from brushset.kohya.attempts.arrange import overrides, pair_folder, write_config
from brushset.kohya.attempts.cadence import choose_cadence, guess_seconds_per_step
from brushset.kohya.attempts.history import AttemptRecord, Start, next_number, opens, read_attempts, rotate_log
from brushset.kohya.attempts.keeper import Keeper
from brushset.kohya.attempts.survey import Training, log_prefix, training_of
from brushset.kohya.attempts.watch import EnoughTrained, LossDiverged, Stall, Watch
from brushset.kohya.command import CHILD_SETTINGS, Launch, build_command
from brushset.kohya.plan import Plan, plan_asked, plan_smaller
from brushset.kohya.render import LOGGING_DIR
from brushset.kohya.scalars import ScalarTail
from brushset.kohya.source import Source
from brushset.patience import choose_epoch, describe_stop
from brushset.process import child_env, run_command
from brushset.protocols import Emit, TrainJob
from brushset.records import ValidationPoint

_FEW_STEPS = 5  # fewer say little of the rate


@dataclass(frozen=True)
class Machine:
    """What trains: the script, and the device by its name, which speed and memory depend on."""

    source: Source
    script: Path
    device: str
    cuda: bool


def choose_plan(job: TrainJob, device: str) -> Plan:
    """The batch to train with: the last attempt's, or a smaller one where that did not fit. Where it had gone on for a
    while before, as a state of its own shows, it is tried once more: somebody else took the memory.
    """
    attempts = read_attempts(job.attempts)
    if not attempts:
        known = None if job.anew else experience.recall_plan(job, device)
        return known or plan_asked(job)
    last = attempts[-1]
    if last.ending == "out of memory" and not last.states and job.spec.train.retry_out_of_memory:
        return plan_smaller(job, last.plan) or last.plan
    return last.plan


def build_argv(job: TrainJob, machine: Machine, record: AttemptRecord) -> list[str]:
    """The command line of one attempt."""
    train, plan = job.spec.train, record.plan
    known = experience.recall_seconds_per_step(job, machine.device, plan)
    cadence = choose_cadence(
        train,
        plan,
        from_step=record.from_step,
        seconds_per_step=known or guess_seconds_per_step(plan, cuda=machine.cuda),
    )
    options = overrides(job, record, cadence)
    launch = Launch(machine.script, train.mixed_precision, not machine.cuda, options, train.processes)
    return build_command(launch, config_dir=pair_folder(job, record))


def run_attempt(job: TrainJob, machine: Machine, plan: Plan, start: Start, emit: Emit) -> None:
    """Starts the trainer and follows it to its end. Returns where it is worth looking again: the training is finished, or
    a smaller batch is to be tried.

    Raises:
        TrainerFailed: it died, and a smaller batch would not help.
        VerificationFailed: the loss became NaN, or it ended well and left no file.
    """
    number, log_number = next_number(job.attempts), rotate_log(job.run)
    record = AttemptRecord(number=number, log_number=log_number, plan=plan, origin=start.origin)
    record = record.model_copy(update={"command": tuple(build_argv(job, machine, record))})
    keeper = Keeper(job.attempts, record)
    write_config(job, record)
    _write_command(job, record, machine.source)
    _tell_start(job, record, emit)
    training = training_of(job, number)
    watch = _make_watch(training, keeper, emit)
    try:
        with _writing_down(keeper), _remembering(job, machine, watch):
            run_command(
                record.command,
                cwd=job.run.root,
                env=child_env({**CHILD_SETTINGS, "SD_SCRIPTS_DIR": str(machine.source.folder)}),
                log_path=job.run.train_log,
                on_line=watch.read,
                on_tick=watch.tick,
            )
    except EnoughTrained as reason:
        emit("note", text=str(reason))
    except TrainerFailed as error:
        if not _has_smaller(job, keeper.record):
            raise
        emit("warning", text=f"{plan} is too much for the GPU's memory: {str(error).split('; log')[0]}")
        return
    if training.last_file() is None:
        raise _left_nothing(job, keeper, watch)


@contextmanager
def _writing_down(keeper: Keeper) -> Iterator[None]:
    """However the block ends, attempt.json says so; only after a `kill -9` of ours it does not."""
    try:
        yield
    except EnoughTrained as reason:
        keeper.ended("stopped", str(reason))
        raise
    except TrainerFailed as error:
        out_of_memory = is_out_of_gpu_memory(error.detail.splitlines())
        keeper.ended("out of memory" if out_of_memory else "failed", str(error))
        raise
    except LossDiverged as error:
        keeper.ended("diverged", str(error))
        raise
    except Interrupted as error:
        keeper.ended("interrupted", str(error))
        raise
    except BaseException as error:  # no matter what: it is passed on
        keeper.ended("failed", f"{type(error).__name__}: {error}")
        raise
    keeper.ended("finished")


@contextmanager
def _remembering(job: TrainJob, machine: Machine, watch: Watch) -> Iterator[None]:
    """What the attempt showed of this machine serves the next one."""
    try:
        yield
    finally:
        watch.close()
        plan = watch.keeper.record.plan
        if watch.steps_per_second and watch.log.last_step >= _FEW_STEPS:
            experience.remember_rate(job, machine.device, plan, watch.steps_per_second)
        if watch.log.last_step >= _FEW_STEPS and not plan.batches_like(plan_asked(job)):
            experience.remember_plan(job, machine.device, plan)


def _make_watch(training: Training, keeper: Keeper, emit: Emit) -> Watch:
    job, train = training.job, training.job.spec.train
    return Watch(
        keeper=keeper,
        tail=ScalarTail(job.run.root / LOGGING_DIR, log_prefix(keeper.record)),
        stall=Stall(train.stall_minutes, train.stall_ends, job.run.train_log),
        emit=emit,
        enough=lambda points, logged_step: _why_enough(training, points, logged_step),
        validation=training.validation(),
    )


def _why_enough(training: Training, validation: list[ValidationPoint], logged_step: int | None) -> str:
    """Why the child may be stopped, or an empty string: validation has given up hope and the epoch's weights are saved, or
    a resumed trainer has saved the true last step, after which it would go on to the end of the epoch.
    """
    job, plan, record = training.job, training.plan, training.last
    output = training.output(record)
    patience = job.spec.train.early_stop_patience
    choice = choose_epoch(validation, patience) if patience else None
    if choice and choice.stop_epoch and opens(output / f"{job.spec.name}-{choice.stop_epoch:06d}.safetensors"):
        return describe_stop(choice, validation, plan.epochs)
    past_the_end = record.origin is not None and plan.ends_inside_an_epoch
    if past_the_end and (logged_step is None or logged_step >= plan.steps) and opens(training.last_step_file()):
        return f"all {plan.steps} steps are trained"
    return ""


def _has_smaller(job: TrainJob, record: AttemptRecord) -> bool:
    return (
        record.ending == "out of memory"
        and job.spec.train.retry_out_of_memory
        and (bool(record.states) or plan_smaller(job, record.plan) is not None)
    )


def _left_nothing(job: TrainJob, keeper: Keeper, watch: Watch) -> VerificationFailed:
    reason = f"it stopped after step {watch.step} of {keeper.record.plan.steps}"
    if watch.log.no_data:
        reason = "it found no images"
    return VerificationFailed(
        f"{keeper.folder.output / job.spec.name}.safetensors: sd-scripts ended with exit code 0 and no file: {reason}; "
        f"log: {job.run.train_log}"
    )


def _write_command(job: TrainJob, record: AttemptRecord, source: Source) -> None:
    write_json(
        job.run.config / "command.json",
        {
            "argv": list(record.command),
            "shell": shlex.join(record.command),
            "cwd": str(job.run.root),
            "environment": dict(CHILD_SETTINGS),
            "sd_scripts": str(source.folder),
            "sd_scripts_commit": source.commit,
        },
    )


def _tell_start(job: TrainJob, record: AttemptRecord, emit: Emit) -> None:
    plan = record.plan
    emit(
        "attempt",
        number=record.number,
        from_step=record.from_step,
        batch_size=plan.batch_size,
        gradient_accumulation_steps=plan.gradient_accumulation_steps,
        gradient_checkpointing=plan.gradient_checkpointing,
    )
    if record.origin:
        emit("note", text=f"training goes on after step {record.from_step} of {plan.steps}")
    elif record.number > 1:
        emit("note", text="no earlier attempt left a state that can be gone on from: training starts anew")
    if not plan.batches_like(plan_asked(job)):
        why = "as memory allowed before on this GPU; --force train tries the style's own again"
        emit("note", text=f"{plan}, {why if record.number == 1 else 'since more did not fit'}: {plan.steps} steps")
