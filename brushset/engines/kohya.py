"""Trains with kohya-ss/sd-scripts' train_network.py, in a child process.

What sd-scripts does wrong without saying so is caught here or refused before it starts: exit code 0 with no data, with
no file, with NaN in the weights (measured at v0.10.1). Its output is teed to logs/train.log and read for progress.
"""

from __future__ import annotations

import math
import os
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brushset.bases.header import read_header
from brushset.errors import TrainerFailed, UsageError, VerificationFailed
from brushset.files import read_toml, sha256_file, write_json
from brushset.kohya.command import ACCELERATE_FILE, ACCELERATE_SETTINGS, CHILD_SETTINGS, Launch, build_command
from brushset.kohya.flags import check_pair, known_flags
from brushset.kohya.parse_log import LogReader, describe_phase, read_losses
from brushset.kohya.render import LOGGING_DIR
from brushset.kohya.source import Source, find_source
from brushset.process import child_env, run_command
from brushset.protocols import Emit, TrainJob
from brushset.records import BaseFile, Checkpoint, Trained
from brushset.spec import StyleSpec


@dataclass
class KohyaEngine:
    """The reference engine. `train_script` stands in for train_network.py in tests; it is then trusted with any base."""

    train_script: Path | None = None
    name: str = "kohya"

    def command(self, job: TrainJob) -> list[str]:
        """The argv of the child process."""
        return self._command(job, find_source(), cpu=not _has_cuda())

    def train(self, job: TrainJob, emit: Emit) -> Trained:
        """Trains in a child process; see `protocols.Engine`.

        Raises:
            UsageError: a combination that is known to fail, before anything starts.
            EnvironmentProblem: sd-scripts or the device is not there.
            TrainerFailed: the trainer died.
            VerificationFailed: the loss became NaN, or the trainer ended well and left no file.
        """
        source, cuda = find_source(), _has_cuda()
        refuse_impossible(job.spec, job.base, cuda=cuda, any_base=self.train_script is not None)
        check_pair(read_toml(job.run.dataset_toml), read_toml(job.run.training_toml))
        _tell_what_differs(job, source, emit, cuda=cuda)
        argv = self._command(job, source, cpu=not cuda)
        _write_command(job, argv, source)
        earlier = set(_event_files(job))
        watch = _Watch(job.steps, emit)
        started = time.monotonic()
        run_command(
            argv,
            cwd=job.run.root,
            env=child_env({**CHILD_SETTINGS, "SD_SCRIPTS_DIR": str(source.folder)}),
            log_path=job.run.train_log,
            on_line=watch.read,
        )
        seconds = time.monotonic() - started
        losses = read_losses(sorted(set(_event_files(job)) - earlier))
        if not losses:
            emit("warning", text=f"sd-scripts left no loss in {job.run.root / LOGGING_DIR}: the report will show none")
        return Trained(
            **_describe_weights(job, watch.log),
            engine=self.name,
            engine_version=source.commit,
            command=tuple(argv),
            losses=losses,
            seconds=round(seconds, 2),
            device=_device(watch.log.facts.get("device", "cpu")),
            base_sha256=job.base.sha256,
            base_random=job.base.random,
        )

    def _command(self, job: TrainJob, source: Source, *, cpu: bool) -> list[str]:
        overrides = {
            "pretrained_model_name_or_path": str(Path(job.base.path).absolute()),
            "tokenizer_cache_dir": str(job.tokenizer_dir.absolute()),
            "output_dir": os.path.relpath(job.output_dir, job.run.root),
        }
        script = self.train_script or source.script
        return build_command(Launch(script.resolve(), job.spec.train.mixed_precision, cpu, overrides))


@dataclass
class _Watch:
    """Turns the trainer's lines into events, and stops it once its loss is NaN: it stays NaN."""

    steps: int
    emit: Emit
    log: LogReader = field(default_factory=LogReader)

    def read(self, line: str) -> None:
        if phase := describe_phase(line):
            self.emit("note", text=f"sd-scripts: {phase}")
        progress = self.log.read(line)
        if progress is None:
            return
        self.emit(
            "train_step",
            step=progress.step,
            total=progress.total,
            loss=progress.loss,
            lr=None,
            it_per_s=progress.it_per_s,
            eta_s=progress.eta_s,
        )
        if progress.loss is not None and not math.isfinite(progress.loss):
            raise VerificationFailed(
                f"the loss became NaN by step {progress.step} of {progress.total}, and the trainer was stopped; "
                'fix: [train] mixed_precision = "bf16" instead of "fp16", or lower unet_lr and text_encoder_lr'
            )


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
    if found:
        raise UsageError.of_many(found)


def _tell_what_differs(job: TrainJob, source: Source, emit: Emit, *, cuda: bool) -> None:
    """Says what is not as a reader of the style would expect it."""
    if not cuda and job.spec.train.mixed_precision == "bf16":
        emit("note", text='[train] mixed_precision = "bf16" may be many times slower than "no" on a CPU')
    if source.note:
        emit("warning", text=source.note)
    elif source.commit != (checked := known_flags()["sd_scripts_commit"]):
        emit("warning", text=f"flags.json was made from sd-scripts {checked}; fix: python -m scripts.make_flags")
    if job.spec.train.tf32:
        emit("note", text="[train] tf32 acts in the native engine only; sd-scripts trains without it")


def _write_command(job: TrainJob, argv: list[str], source: Source) -> None:
    write_json(job.run.config / ACCELERATE_FILE, ACCELERATE_SETTINGS)
    write_json(
        job.run.config / "command.json",
        {
            "argv": argv,
            "shell": shlex.join(argv),
            "cwd": str(job.run.root),
            "environment": dict(CHILD_SETTINGS),
            "sd_scripts": str(source.folder),
            "sd_scripts_commit": source.commit,
        },
    )


def _event_files(job: TrainJob) -> list[Path]:
    return sorted((job.run.root / LOGGING_DIR).glob("**/events.out.tfevents.*"))


def _describe_weights(job: TrainJob, log: LogReader) -> Mapping[str, Any]:
    """What lies in the output folder: final file, kept epochs, counts from the file's own metadata."""
    final = job.output_dir / f"{job.spec.name}.safetensors"
    if not final.is_file():
        reason = "it found no images" if log.no_data else f"it stopped after step {log.last_step} of {job.steps}"
        raise VerificationFailed(
            f"{final}: sd-scripts ended with exit code 0 and no file: {reason}; log: {job.run.train_log}"
        )
    if not log.saved:
        raise TrainerFailed(f'{job.run.train_log}: sd-scripts never said "model saved."; fix: see its last lines')
    header = read_header(final)
    checkpoints = [
        Checkpoint(
            path=path.name,
            epoch=_count(path, "ss_epoch"),
            step=_count(path, "ss_steps"),
            sha256=sha256_file(path),
        )
        for path in sorted(job.output_dir.glob(f"{job.spec.name}-*.safetensors"))
    ]
    return {
        "weights": final.name,
        "weights_sha256": sha256_file(final),
        "checkpoints": tuple(checkpoints),
        "steps": _count(final, "ss_steps"),
        "epochs": _count(final, "ss_epoch"),
        "modules": sum(name.endswith(".alpha") for name in header.tensors),
        "tensors": len(header.tensors),
    }


def _count(path: Path, key: str) -> int:
    value = read_header(path).metadata.get(key, "")
    if not value.isdigit():
        raise VerificationFailed(f"{path}: its metadata {key} is {value!r}, expected a number")
    return int(value)


def _has_cuda() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def _has_bf16() -> bool:
    import torch

    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def _device(trained_on: str) -> str:
    import torch

    if trained_on.startswith("cuda") and torch.cuda.is_available():
        return f"{trained_on} ({torch.cuda.get_device_name()})"
    return trained_on
