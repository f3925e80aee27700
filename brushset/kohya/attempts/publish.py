"""What an uninterrupted run would have left, put together from the attempts that made it.

Names, steps and epochs are those of the whole training. The trainer's own count begins anew with each attempt, so where a
file says a relative number its metadata are rewritten, and say so; the tensors stay what they are, byte by byte. Files
are linked where nothing is to be changed: the attempts are removed later.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from brushset.bases.header import read_header
from brushset.errors import VerificationFailed
from brushset.files import link_or_copy, sha256_file
from brushset.kohya.attempts.history import AttemptRecord, attempt_folder, log_file
from brushset.kohya.attempts.survey import Training
from brushset.kohya.plan import Plan
from brushset.kohya.render import render_prompts
from brushset.lora.metadata import read_metadata, rewrite_metadata, with_hashes
from brushset.patience import describe_stop
from brushset.protocols import TrainJob
from brushset.records import Attempt, Checkpoint, TrainSample

RESUMED_KEY = "ss_brushset_resumed_from_step"
_SAMPLE = re.compile(r"_e(?P<epoch>\d{6})_(?P<prompt>\d{2})_\d{14}")


def publish(training: Training, past: list[AttemptRecord]) -> dict[str, Any]:
    """Fills the job's output folder; returns the fields of `Trained` that follow from it.

    Raises:
        VerificationFailed: the best epoch's weights are not there.
    """
    job, plan = training.job, training.plan
    validation, choice = training.validation(), training.choice()
    losses, epochs = training.losses(), training.epoch_files()
    last_epoch = (choice and choice.stop_epoch) or plan.epochs
    last = training.last_file()
    assert last is not None, "the caller has seen it"
    every, name = job.spec.train.save_every_n_epochs, job.spec.name
    kept = {epoch: epochs[epoch] for epoch in range(every, last_epoch, every) if epoch in epochs}
    final_epoch, final = last_epoch, (last, training.last)
    if choice and choice.best_epoch != last_epoch:
        if choice.best_epoch not in epochs:
            raise VerificationFailed(
                f"{name}: the weights of epoch {choice.best_epoch}, the best by validation, are gone"
            )
        kept[last_epoch], final_epoch, final = final, choice.best_epoch, epochs[choice.best_epoch]
    checkpoints = [
        _put(job, plan, f"{name}-{epoch:06d}.safetensors", epoch, source) for epoch, source in sorted(kept.items())
    ]
    weights = _put(job, plan, f"{name}.safetensors", final_epoch, final)
    header = read_header(job.output_dir / weights.path)
    return {
        "weights": weights.path,
        "weights_sha256": weights.sha256,
        "checkpoints": tuple(checkpoints),
        "steps": plan.step_after(last_epoch),
        "epochs": last_epoch,
        "modules": sum(key.endswith(".alpha") for key in header.tensors),
        "tensors": len(header.tensors),
        "losses": tuple(point for point in losses if point.step <= plan.step_after(last_epoch)),
        "validation": tuple(validation),
        "samples": tuple(_samples(training)),
        "best_epoch": choice.best_epoch if choice else None,
        "stopped_early": describe_stop(choice, validation, plan.epochs),
        "attempts": tuple(_summary(record, training) for record in past),
        "seconds": round(sum(record.seconds for record in past), 2),
        "command": training.last.command,
    }


def _put(job: TrainJob, plan: Plan, name: str, epoch: int, source: tuple[Path, AttemptRecord]) -> Checkpoint:
    """One file under its final name, with the numbers of the whole training in its metadata."""
    path, record = source
    target, step = job.output_dir / name, plan.step_after(epoch)
    metadata = read_metadata(path)
    absolute = {"ss_steps": str(step), "ss_epoch": str(epoch)}
    _refuse_wrong_count(path, metadata, step - record.base_step)
    if absolute.items() <= metadata.items():
        link_or_copy(path, target)
    else:
        rewrite_metadata(path, target, {**metadata, **absolute, RESUMED_KEY: str(record.from_step)})
        rewrite_metadata(target, target, with_hashes(target))
    return Checkpoint(path=name, epoch=epoch, step=step, sha256=sha256_file(target))


def _refuse_wrong_count(path: Path, metadata: Mapping[str, str], own_steps: int) -> None:
    """The trainer's own count, in its own terms, must be what the plan says: it has been seen to train too much."""
    if metadata.get("ss_steps") != str(own_steps):
        raise VerificationFailed(
            f"{path}: its metadata ss_steps are {metadata.get('ss_steps')!r}, expected {own_steps} since the attempt began"
        )


def _samples(training: Training) -> list[TrainSample]:
    """The sample images of the whole training, linked into the output folder."""
    job, prompts = training.job, render_prompts(training.job.spec)
    found: dict[tuple[int, int], TrainSample] = {}
    for record, until in training.chain:
        for path in sorted(attempt_folder(job.attempts, record.number).output.glob("sample/*.png")):
            if not (match := _SAMPLE.search(path.name)):
                continue
            epoch, index = int(match["epoch"]), int(match["prompt"])
            if (until is None or training.plan.step_after(epoch) <= until) and index < len(prompts):
                target = f"sample/{job.spec.name}-{epoch:06d}-{index:02d}.png"
                link_or_copy(path, job.output_dir / target)
                found[epoch, index] = TrainSample(epoch=epoch, prompt=prompts[index]["prompt"], path=target)
    return [found[key] for key in sorted(found)]


def _summary(record: AttemptRecord, training: Training) -> Attempt:
    run, plan = training.job.run, record.plan
    return Attempt(
        number=record.number,
        from_step=record.from_step,
        to_step=min(max(record.last_step, record.from_step), plan.steps),
        batch_size=plan.batch_size,
        gradient_accumulation_steps=plan.gradient_accumulation_steps,
        gradient_checkpointing=plan.gradient_checkpointing,
        seconds=record.seconds,
        ending=record.ending,
        message=record.message,
        log=log_file(run, record.log_number).relative_to(run.root).as_posix(),
    )
