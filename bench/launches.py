"""One launch of the real sd-scripts for the bench: a folder to train in, the command line, and when each step ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from brushset.bases.tokenizer import tokenizer_dir
from brushset.cli.devices import list_gpus
from brushset.errors import BrushsetError
from brushset.files import read_json, toml_text, write_atomic, write_json
from brushset.kohya.command import ACCELERATE_FILE, CHILD_SETTINGS, Launch, accelerate_settings, build_command
from brushset.kohya.parse_log import LogReader
from brushset.kohya.render import render_dataset, render_training
from brushset.kohya.source import Source
from brushset.load import build_spec
from brushset.paths import RunPaths
from brushset.process import child_env, process_file, run_command
from brushset.records import BaseFile

SPEED_KEYS = ("cache_latents", "vae_batch_size", "sdpa", "optimizer_args", "max_data_loader_n_workers")
CHANGES: Mapping[str, Mapping[str, Any]] = {
    "stock": {},
    "cached latents": {"cache_latents": True, "vae_batch_size": 8},
    "sdpa": {"sdpa": True},
    "fused AdamW": {"optimizer_args": ["fused=True"]},
    "no workers": {"max_data_loader_n_workers": 0},
    "1 kept worker": {"max_data_loader_n_workers": 1, "persistent_data_loader_workers": True},
    "no log": {"logging_dir": None, "log_with": None},
}
SAMPLE_S = 1.0


@dataclass(frozen=True)
class Work:
    """What every launch trains."""

    base: BaseFile
    source: Source
    script: Path
    images: int
    epochs: int
    resolution: int
    precision: str


@dataclass
class Launched:
    """One launch, and when each of its steps ended, in seconds since it was started."""

    samples: int
    steps: int
    step_ends: list[float] = field(default_factory=list)
    first_step_begun: float = 0.0
    ended: float = 0.0
    main_gb: float = 0.0
    cpu_s: float = 0.0


def lay_out(root: Path, work: Work, variant: str, batch: int) -> RunPaths:
    """A run folder with images, captions and the pair of TOMLs."""
    run = RunPaths(root)
    train = {"engine": "kohya", "batch_size": batch, "epochs": work.epochs, "mixed_precision": work.precision,
             "min_bucket_reso": 64, "vae_batch_size": 8, "save_every_n_epochs": work.epochs}  # fmt: skip
    layer = {"name": "bench", "trigger": "benchstyle", "dataset": {"resolution": work.resolution}, "train": train}
    spec = build_spec([("bench", layer)])
    training = render_training(spec)
    if variant != "tuned":
        for table in training.values():
            for key in SPEED_KEYS:
                table.pop(key, None)
        training["speed"] = {}
        for key, value in CHANGES[variant].items():
            training["speed"][key] = value
        if variant == "no log":
            del training["logging"], training["speed"]
    write_atomic(run.dataset_toml, toml_text(render_dataset(spec, 1)))
    write_atomic(run.training_toml, toml_text(training))
    write_json(run.config / ACCELERATE_FILE, accelerate_settings(1))
    run.images.mkdir(parents=True)
    noise = np.random.default_rng(0)
    for index in range(work.images):
        pixels = noise.integers(0, 255, (work.resolution, work.resolution, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(run.images / f"{index:04d}.png")
        (run.images / f"{index:04d}.txt").write_text(f"benchstyle, thing number {index}\n", encoding="utf-8")
    return run


def launch(run: RunPaths, work: Work, environ: Mapping[str, str], batch: int) -> Launched:
    """Trains once, by the real command line."""
    overrides = {
        "pretrained_model_name_or_path": work.base.path,
        "tokenizer_cache_dir": str(tokenizer_dir(work.base)),
        "output_dir": "weights",
    }
    argv = build_command(Launch(work.script, work.precision, cpu=not list_gpus(), overrides=overrides))
    steps = -(-work.images // batch) * work.epochs
    found, log, started = Launched(work.images * work.epochs, steps), LogReader(), time.monotonic()

    def read(line: str) -> None:
        now = time.monotonic() - started
        if "epoch 1/" in line and not found.first_step_begun:
            found.first_step_begun = now
        progress = log.read(line)
        if progress is not None and progress.step > len(found.step_ends):
            found.step_ends += [now] * (progress.step - len(found.step_ends))

    carried = {"PYTHONPATH": environ["PYTHONPATH"]} if "PYTHONPATH" in environ else {}  # docs/gpu_day.md
    env = child_env({**CHILD_SETTINGS, **carried, "SD_SCRIPTS_DIR": str(work.source.folder)}, environ)
    done = threading.Event()
    watcher = threading.Thread(target=_watch_processes, args=(run, found, done), daemon=True)
    watcher.start()
    try:
        run_command(argv, cwd=run.root, env=env, log_path=run.train_log, on_line=read)
    finally:
        done.set()
        watcher.join()
    found.ended = time.monotonic() - started
    if len(found.step_ends) != steps:
        raise BrushsetError(f"{run.train_log}: {len(found.step_ends)} of {steps} steps were seen")
    return found


def _watch_processes(run: RunPaths, found: Launched, done: threading.Event) -> None:
    record = process_file(run.train_log)
    while not done.wait(SAMPLE_S):
        try:
            processes = [psutil.Process(entry["pid"]) for entry in read_json(record)["processes"]]
        except (BrushsetError, KeyError, psutil.Error):
            continue  # not yet, or one is just gone
        with suppress(psutil.Error):
            found.main_gb = max(found.main_gb, sum(map(_own_bytes, processes)) / 1e9)
            times = [process.cpu_times() for process in processes]
            found.cpu_s = max(found.cpu_s, sum(sum(each[:4]) for each in times))  # own and ended children's


def _own_bytes(process: psutil.Process) -> int:
    """Memory of a process, what it shares divided by those that share it: forked loader workers share the models."""
    full = process.memory_full_info()
    return int(getattr(full, "pss", 0) or full.rss)
