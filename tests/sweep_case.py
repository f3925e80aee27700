"""Runs of a sweep for tests: folders with the records that a training and a choice leave, and an executor that makes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brushset.files import sha256_file, write_atomic, write_json
from brushset.manifest import create_run, read_manifest, write_manifest
from brushset.paths import RunPaths, RunsDir
from brushset.protocols import Handle, Standing, Task
from brushset.spec import StyleSpec
from brushset.stage_records import StageRecord


def make_run(runs: RunsDir, *, smoke: bool = False, status: str = "done", **train: Any) -> RunPaths:
    """A run folder with its manifest, and nothing done."""
    spec = StyleSpec.model_validate(
        {"name": "cartoon", "trigger": "t", "smoke": smoke, "train": {"engine": "native", **train}}
    )
    run = create_run(runs, spec, {"a.png": "0"}, "test")
    manifest = read_manifest(run)
    assert manifest is not None
    write_manifest(run, manifest.model_copy(update={"status": status}))
    return run


def record(
    run: RunPaths, stage: str, data: Mapping[str, Any], outputs: Mapping[str, str] | None = None, seconds: float = 60
) -> None:
    """What a stage leaves: its outputs (path → content), then its record."""
    for path, content in (outputs or {}).items():
        write_atomic(run.root / path, content)
    digests = {path: sha256_file(run.root / path) for path in outputs or {}}
    kept = StageRecord(
        stage=stage,
        version=1,
        digest="d",
        started_at=1000.0,
        ended_at=1000.0 + seconds,
        outputs=digests,
        data=dict(data),
    )
    write_json(run.record(stage), kept.model_dump(mode="json"))


def record_training(
    run: RunPaths, *, steps: int = 100, seconds: float = 50.0, loss: float | None = None, random: bool = False
) -> None:
    """A finished training of one epoch."""
    validation = [] if loss is None else [{"epoch": 1, "step": steps, "loss": loss}]
    data = {
        "engine": "native", "engine_version": "1", "command": [], "weights": "weights/cartoon.safetensors",
        "weights_sha256": "0", "checkpoints": [], "steps": steps, "epochs": 1, "losses": [], "seconds": seconds,
        "device": "cpu", "modules": 264, "tensors": 792, "base_sha256": "0", "base_random": random,
        "validation": validation, "phases": {"load models": 10.0, "training": seconds - 10.0},
    }  # fmt: skip
    record(run, "train", data, {"weights/cartoon.safetensors": f"of {run.run_id}"}, seconds)


def record_choice(
    run: RunPaths, chosen_by: float, reported: float | None, *, feasible: bool = True, meaningful: bool = True
) -> None:
    """A choice of epoch 1 at 0.8."""

    def candidate(value: float, number: int) -> dict[str, Any]:
        nothing = {"value": None}
        return {
            "weights": "weights/cartoon.safetensors", "epoch": 1, "weight": 0.8, "round": number, "images": 4,
            "retention": {"value": value, "low": value - 0.1, "high": value + 0.1}, "fidelity": nothing,
            "diversity": nothing, "memorisation": nothing, "feasible": feasible,
        }  # fmt: skip

    data = {
        "weights": "weights/cartoon.safetensors", "weights_sha256": "0", "epoch": 1, "weight": 0.8,
        "decided_by": "retention", "feasible": feasible, "reason": "because", "meaningful": meaningful,
        "candidates": [candidate(chosen_by - 0.3, 1), candidate(chosen_by, 2)],
        "reported": None if reported is None else candidate(reported, 2),
    }  # fmt: skip
    record(run, "choose", data)


@dataclass
class FakeExecutor:
    """Does a task when it is polled, by `work`, which raises nothing and leaves a record where it goes well."""

    work: Callable[[RunPaths], bool]
    at_once: int = 1
    name: str = "local"
    poll_every_s: float = 0.0
    outlives: bool = False
    submitted: list[list[str]] = field(default_factory=list)
    _state: dict[str, Standing] = field(default_factory=dict)

    def submit(self, tasks: Sequence[Task]) -> list[Handle]:
        self.submitted.append([task.run.run_id for task in tasks])
        self._state |= {task.run.run_id: Standing("waiting") for task in tasks}
        return [Handle(task, "s") for task in tasks]

    def poll(self, handles: Sequence[Handle]) -> list[Standing]:
        going = [each for each in handles if not self._state[each.task.run.run_id].over][: self.at_once]
        for handle in going:
            well = self.work(handle.task.run)
            done = Standing("finished", 0) if well else Standing("failed", 5, "it was poisoned")
            self._state[handle.task.run.run_id] = done
        return [self._state[handle.task.run.run_id] for handle in handles]

    def cancel(self, handle: Handle) -> None:
        self._state[handle.task.run.run_id] = Standing("cancelled")

    def logs(self, handle: Handle) -> Path:
        return handle.task.run.train_log

    def close(self) -> None:
        pass


def say(run: RunPaths, *events: Mapping[str, Any]) -> None:
    """Appends to a run's events."""
    run.logs.mkdir(exist_ok=True)
    with run.events.open("a", encoding="utf-8") as file:
        for event in events:
            file.write(json.dumps(event) + "\n")
