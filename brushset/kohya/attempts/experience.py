"""What did this machine show before: how fast a step is, and which batch fits into the GPU's memory?

Two small files in the user's cache, one entry a setting. A setting is everything that decides memory and speed, so that
a changed one is tried afresh. Both are hints: a file that cannot be read is as good as none.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from brushset.errors import BrushsetError
from brushset.files import read_json, sha256_json, write_json
from brushset.kohya.plan import Plan, plan_with
from brushset.paths import cache_dir
from brushset.protocols import TrainJob

_KEYS = (
    "network_dim", "train_text_encoder", "optimizer", "optimizer_args", "mixed_precision", "attention", "processes",
    "max_bucket_reso", "enable_bucket", "bucket_no_upscale", "cache_latents", "vae_batch_size", "max_token_length",
    "sample_every_n_epochs", "validate_every_n_epochs", "extra",
)  # fmt: skip


def recall_plan(job: TrainJob, device: str) -> Plan | None:
    """The batch that fitted where the style's own did not; None where nothing is known."""
    known = _read(_limits_file()).get(_key(job, device), {})
    size, checkpointing = known.get("batch_size"), known.get("gradient_checkpointing")
    if not isinstance(size, int) or not isinstance(checkpointing, bool) or size < 1 or job.spec.train.batch_size % size:
        return None
    return plan_with(job, size, checkpointing=checkpointing)


def remember_plan(job: TrainJob, device: str, plan: Plan) -> None:
    """Writes down that `plan` is what fits."""
    entry = {
        "batch_size": plan.batch_size,
        "gradient_checkpointing": plan.gradient_checkpointing,
        "device": device,
        "base": job.base.name,
        "resolution": job.spec.dataset.resolution,
        "found": round(time.time()),
    }
    _add(_limits_file(), _key(job, device), entry)


def recall_seconds_per_step(job: TrainJob, device: str, plan: Plan) -> float | None:
    """An optimizer step's time as it was here before."""
    value = _read(_rates_file()).get(_rate_key(job, device, plan))
    return float(value) if isinstance(value, int | float) and value > 0 else None


def remember_rate(job: TrainJob, device: str, plan: Plan, steps_per_second: float) -> None:
    """Writes down how fast it went."""
    _add(_rates_file(), _rate_key(job, device, plan), 1 / steps_per_second)


def _limits_file() -> Path:
    return cache_dir() / "memory-limits.json"


def _rates_file() -> Path:
    return cache_dir() / "step-seconds.json"


def _key(job: TrainJob, device: str) -> str:
    train = job.spec.train.model_dump(mode="json")
    asked = [train["batch_size"], train["gradient_checkpointing"]]
    return sha256_json(
        [device, job.base.sha256, job.spec.dataset.resolution, asked, {key: train[key] for key in _KEYS}]
    )


def _rate_key(job: TrainJob, device: str, plan: Plan) -> str:
    return sha256_json(
        [_key(job, device), plan.batch_size, plan.gradient_accumulation_steps, plan.gradient_checkpointing]
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except BrushsetError:
        return {}
    return found if isinstance(found, dict) else {}


def _add(path: Path, key: str, value: object) -> None:
    write_json(path, {**_read(path), key: value})
