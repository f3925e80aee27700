"""Trains with kohya-ss/sd-scripts' train_network.py, in a child process, as often as it takes.

What sd-scripts does wrong without saying so is caught here or refused before it starts: exit code 0 with no data, with
no file, with NaN in the weights; a resume that counts anew (measured at v0.10.1). A training is one attempt or several:
each begins where the furthest usable state of an earlier one stands, or anew with a smaller batch where the last one was
too much for the GPU's memory. Whether a training is finished is seen from its files alone, never from how it ended.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from brushset.errors import UsageError
from brushset.files import read_toml
from brushset.kohya.attempts.history import AttemptRecord, choose_start, read_attempts
from brushset.kohya.attempts.launch import Machine, build_argv, choose_plan, run_attempt
from brushset.kohya.attempts.publish import publish
from brushset.kohya.attempts.survey import survey, training_of
from brushset.kohya.check.flags import check_pair, known_flags
from brushset.kohya.plan import plan_asked
from brushset.kohya.render import LOGGING_DIR
from brushset.kohya.source import Source, find_source
from brushset.protocols import Emit, TrainJob
from brushset.records import BaseFile, Trained
from brushset.spec import StyleSpec


@dataclass
class KohyaEngine:
    """The reference engine. `train_script` stands in for train_network.py in tests; it is then trusted with any base."""

    train_script: Path | None = None
    name: str = "kohya"

    def command(self, job: TrainJob) -> list[str]:
        """The argv of the child process, as a first attempt has it."""
        first = AttemptRecord(number=1, log_number=1, plan=plan_asked(job))
        return build_argv(job, self._machine(), first)

    def train(self, job: TrainJob, emit: Emit) -> Trained:
        """Trains in child processes; see `protocols.Engine`. Called again after a kill, it goes on.

        Raises:
            UsageError: a combination that is known to fail, before anything starts.
            EnvironmentProblem: sd-scripts or the device is not there.
            TrainerFailed: the trainer died.
            VerificationFailed: the loss became NaN, or the trainer ended well and left no file.
        """
        machine = self._machine()
        refuse_impossible(job.spec, job.base, cuda=machine.cuda, any_base=self.train_script is not None)
        check_pair(read_toml(job.run.dataset_toml), read_toml(job.run.training_toml))
        _tell_what_differs(job, machine, emit)
        while True:
            plan = choose_plan(job, machine.device)
            start = choose_start(survey(job, plan, emit), plan)
            if start.done is not None:
                break
            run_attempt(job, machine, plan, start, emit)
        training = training_of(job, start.done)
        trained = Trained(
            **publish(training, read_attempts(job.attempts)),
            engine=self.name,
            engine_version=machine.source.commit,
            device=_device(training.last.device or "cpu"),
            base_sha256=job.base.sha256,
            base_random=job.base.random,
        )
        if lacking := trained.steps - len(trained.losses):
            emit(
                "warning", text=f"the loss of {lacking} of {trained.steps} steps is not in {job.run.root / LOGGING_DIR}"
            )
        return trained

    def _machine(self) -> Machine:
        source, cuda = find_source(), _has_cuda()
        return Machine(source, (self.train_script or source.script).resolve(), _device("cuda") if cuda else "cpu", cuda)


def refuse_impossible(spec: StyleSpec, base: BaseFile, *, cuda: bool, any_base: bool = False) -> None:
    """Raises UsageError for what is known to fail in sd-scripts, late and in other words; every finding a line."""
    train, found = spec.train, []
    if base.narrow and not any_base:
        found.append(
            f"[base] model {base.name} is narrower than SD 1.5, which sd-scripts cannot load; "
            'fix: random:sd15, or [train] engine = "native"'
        )
    if not cuda and train.mixed_precision == "fp16":
        found.append('[train] mixed_precision = "fp16" fails on a CPU; fix: "bf16" or "no"')
    if not cuda and train.attention == "xformers":
        found.append('[train] attention = "xformers" needs a CUDA device, and none is here; fix: "sdpa"')
    if cuda and train.mixed_precision == "bf16" and not _has_bf16():
        found.append('[train] mixed_precision = "bf16" is not known to this GPU; fix: "fp16"')
    if train.processes > (gpus := _count_gpus() if cuda else 0) and train.processes > 1:
        found.append(
            f"[train] processes = {train.processes} wants as many GPUs, and {gpus} are seen here; fix: --gpus with ids "
            "of nvidia-smi, or processes = 1"
        )
    if found:
        raise UsageError.of_many(found)


def _tell_what_differs(job: TrainJob, machine: Machine, emit: Emit) -> None:
    """Says what is not as a reader of the style would expect it."""
    source: Source = machine.source
    if not machine.cuda and job.spec.train.mixed_precision == "bf16":
        emit("note", text='[train] mixed_precision = "bf16" may be many times slower than "no" on a CPU')
    if source.note:
        emit("warning", text=source.note)
    elif source.commit != (checked := known_flags()["sd_scripts_commit"]):
        emit("warning", text=f"flags.json was made from sd-scripts {checked}; fix: python -m scripts.make_flags")
    if job.spec.train.tf32:
        emit("note", text="[train] tf32 acts in the native engine only; sd-scripts trains without it")


def _has_cuda() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def _count_gpus() -> int:
    import torch

    return int(torch.cuda.device_count())


def _has_bf16() -> bool:
    import torch

    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def _device(trained_on: str) -> str:
    import torch

    if trained_on.startswith("cuda") and torch.cuda.is_available():
        return f"{trained_on} ({torch.cuda.get_device_name()})"
    return trained_on
