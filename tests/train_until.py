"""Trains with real sd-scripts on the narrow base in a process of its own, until it is killed in a chosen way.

For tests alone: `python train_until.py ROOT SETTINGS HOW STEP`. HOW is `end`, `trainer` (its trainer is killed with -9),
`state` (the same, while a state is being written), `us` (this process is killed with -9) or `term` (SIGTERM to this one).
The last line on stdout is the record, as JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from test_engine_kohya import WRAPPER, make_spec

from brushset.bases.resolve import resolve_base
from brushset.bases.tokenizer import tokenizer_dir
from brushset.cli.guard import guarded
from brushset.engines.kohya import KohyaEngine
from brushset.files import read_json, toml_text, write_atomic
from brushset.kohya.render import render_dataset, render_training
from brushset.log import silent
from brushset.paths import RunPaths
from brushset.process import process_file, stop_orphan
from brushset.protocols import TrainJob
from brushset.stages.configure import count_steps
from brushset.stages.train import verify_trained

IMAGES = 2
RECIPE: dict[str, Any] = {
    "network_dim": 4, "network_alpha": 2.0, "lr_warmup_ratio": 0.0, "mixed_precision": "no", "batch_size": 1,
    "unet_lr": 1e-3, "text_encoder_lr": 1e-3, "save_state_minutes": 1e-6, "repeats": 2,
}  # fmt: skip


def make_job(root: Path, settings: dict[str, Any]) -> TrainJob:
    spec = make_spec(**{**RECIPE, **settings})
    run = RunPaths(root / "ink" / "one")
    write_atomic(run.dataset_toml, toml_text(render_dataset(spec, spec.train.repeats or 1)))
    write_atomic(run.training_toml, toml_text(render_training(spec)))
    base = resolve_base("random:tiny", None, silent)
    batches = IMAGES * (spec.train.repeats or 1)  # one a batch
    output = run.root / ".tmp-train"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    return TrainJob(
        spec, run, base, tokenizer_dir(base), output, count_steps(spec.train, batches)[0], batches,
        buckets={"128x128": IMAGES}, repeats=spec.train.repeats or 1, attempts_dir=run.attempts / "d",
    )  # fmt: skip


def kill_trainer(job: TrainJob) -> None:
    for entry in read_json(process_file(job.run.train_log))["processes"]:
        if psutil.pid_exists(entry["pid"]):
            psutil.Process(entry["pid"]).kill()


def kill_in_state(job: TrainJob, step: int) -> None:
    """Waits until the state of a step has begun and is not whole, and kills the trainer then."""
    while True:
        for folder in job.attempts.glob(f"attempt-*/output/*{step:06d}-state"):
            if (folder / "train_state.json").is_file() and not (folder / "random_states_0.pkl").exists():
                return kill_trainer(job)
        time.sleep(0.0005)


def train(root: str, settings: str, how: str, step: str) -> int:
    job = make_job(Path(root), json.loads(settings))
    stop_orphan(process_file(job.run.train_log))
    if how == "state":
        threading.Thread(target=kill_in_state, args=(job, int(step)), daemon=True).start()

    def emit(event: str, /, **fields: object) -> None:
        if event == "train_step" and fields["step"] == int(step):
            if how == "trainer":
                kill_trainer(job)
            elif how == "us":
                os.kill(os.getpid(), signal.SIGKILL)
            elif how == "term":
                os.kill(os.getpid(), signal.SIGTERM)

    trained = KohyaEngine(WRAPPER).train(job, emit)
    verify_trained(job, trained)
    print(trained.model_dump_json())
    return 0


def app(*, args: list[str], standalone_mode: bool) -> int:
    """What the front door's guard calls, so that signals and errors are dealt with as a user meets them."""
    return train(*args)


if __name__ == "__main__":
    sys.exit(guarded(app, sys.argv[1:]))  # type: ignore[arg-type]
