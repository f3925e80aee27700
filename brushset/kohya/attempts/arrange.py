"""What one attempt's trainer is told beyond the style's TOML pair: where to write, how often to save, from where to go on.

That goes to the command line, which overrules the files. Where the batch had to be divided the attempt gets its own pair,
since a dataset TOML's batch size wins over the command line.
"""

from __future__ import annotations

import os
from pathlib import Path

from brushset.files import read_toml, toml_text, write_atomic, write_json
from brushset.kohya.attempts.cadence import Cadence
from brushset.kohya.attempts.history import AttemptFolder, AttemptRecord, attempt_folder
from brushset.kohya.attempts.survey import log_prefix
from brushset.kohya.command import ACCELERATE_FILE, accelerate_settings
from brushset.kohya.plan import plan_asked
from brushset.kohya.render import render_prompts
from brushset.protocols import TrainJob

Overrides = dict[str, str | None]

_PROMPTS = "prompts.json"


def pair_folder(job: TrainJob, record: AttemptRecord) -> str:
    """Where the attempt's TOML pair lies, relative to the run."""
    return _below(job, _config(job, record))


def write_config(job: TrainJob, record: AttemptRecord) -> None:
    """Writes what the attempt needs beside the style's TOML pair, and its own pair where the batch was divided."""
    config = _config(job, record)
    write_json(config / ACCELERATE_FILE, accelerate_settings(job.spec.train.processes))
    if config != job.run.config:
        _write_divided_pair(job, record, config)
    if job.spec.train.sample_every_n_epochs:
        write_json(attempt_folder(job.attempts, record.number).root / _PROMPTS, render_prompts(job.spec))


def overrides(job: TrainJob, record: AttemptRecord, cadence: Cadence) -> Overrides:
    """The options of the command line; a value of None is a switch."""
    folder = attempt_folder(job.attempts, record.number)
    options: Overrides = {
        "pretrained_model_name_or_path": str(Path(job.base.path).absolute()),
        "tokenizer_cache_dir": str(job.tokenizer_dir.absolute()),
        "output_dir": _below(job, folder.output),
        "log_prefix": log_prefix(record),
        "save_every_n_epochs": str(cadence.epochs),
    }
    if cadence.steps is not None:
        options["save_every_n_steps"] = str(cadence.steps)
    if cadence.states:
        options["save_state"] = None
    if every := job.spec.train.sample_every_n_epochs:
        options |= {"sample_every_n_epochs": str(every), "sample_prompts": _below(job, folder.root / _PROMPTS)}
    return options | _resume(job, record)


def _resume(job: TrainJob, record: AttemptRecord) -> Overrides:
    """At the start of an epoch sd-scripts begins with that epoch, for any accumulation; inside one it must be told to
    skip what is done. `initial_step` overrules the state's own count, which is not to be believed.
    """
    if record.origin is None:
        return {}
    source: AttemptFolder = attempt_folder(job.attempts, record.origin.attempt)
    options: Overrides = {
        "resume": _below(job, source.output / record.origin.state.folder),
        "initial_step": str(record.from_step),
    }
    if record.from_step != record.base_step:
        options["skip_until_initial_step"] = None
    return options


def _write_divided_pair(job: TrainJob, record: AttemptRecord, folder: Path) -> None:
    plan = record.plan
    dataset, training = read_toml(job.run.dataset_toml), read_toml(job.run.training_toml)
    dataset["datasets"][0]["batch_size"] = plan.batch_size
    training["training"]["gradient_accumulation_steps"] = plan.gradient_accumulation_steps
    if plan.gradient_checkpointing:
        training["training"]["gradient_checkpointing"] = True
    write_atomic(folder / job.run.dataset_toml.name, toml_text(dataset))
    write_atomic(folder / job.run.training_toml.name, toml_text(training))


def _config(job: TrainJob, record: AttemptRecord) -> Path:
    own = not record.plan.batches_like(plan_asked(job))
    return attempt_folder(job.attempts, record.number).root if own else job.run.config


def _below(job: TrainJob, path: Path) -> str:
    return os.path.relpath(path, job.run.root)
