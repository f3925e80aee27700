"""The run record, run.json: what was run, on what, with what, and how far it came. Enough to run it again.

The stages' own records are the truth; run.json repeats their digests, times and outputs, and adds what surrounds
them: argv, commits, lock file, packages, device, seed, hashes of images and base model.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import hashlib
import importlib.metadata
import platform
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from brushset.errors import BrushsetError
from brushset.files import read_json, sha256_file, sha256_json, write_atomic, write_json
from brushset.load import spec_text
from brushset.paths import PROJECT, RunPaths, RunsDir
from brushset.spec import SUPERVISION, StyleSpec
from brushset.stage_records import StageRecord

SCHEMA = 1
PACKAGES = (
    "torch",
    "torchvision",
    "xformers",
    "accelerate",
    "diffusers",
    "transformers",
    "safetensors",
    "peft",
    "bitsandbytes",
    "numpy",
    "pillow",
)
Status = Literal["waiting", "running", "partial", "done", "failed", "interrupted"]


class RunManifest(BaseModel):
    """run.json."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA
    run_id: str
    style: str
    identity: str
    spec_digest: str
    smoke: bool
    status: Status = "waiting"
    error: str = ""
    created_at: float
    updated_at: float
    argv: list[str]
    commit: str
    dirty: bool
    engine: str
    engine_reason: str
    sd_scripts_commit: str = ""
    base_sha256: str = ""
    lock_sha256: str
    packages: dict[str, str]
    python: str
    platform: str
    device: str
    seed: int
    images: dict[str, str]
    stages: dict[str, dict[str, Any]] = {}


def run_identity(spec: StyleSpec, images: Mapping[str, str]) -> str:
    """What makes two commands the same run: the resolved spec and the very images and captions."""
    apart: dict[str, Any] = {"train": set(SUPERVISION), "executor": True}
    return sha256_json([spec.model_dump(mode="json", exclude=apart), dict(images)])


def find_run(runs: RunsDir, style: str, identity: str) -> RunPaths | None:
    """The newest run of the style with this identity."""
    for run in reversed(runs.runs_of(style)):
        manifest = read_manifest(run)
        if manifest is not None and manifest.identity == identity:
            return run
    return None


def create_run(runs: RunsDir, spec: StyleSpec, images: Mapping[str, str], engine_reason: str) -> RunPaths:
    """Makes the folder, spec.toml and run.json of a new run."""
    now = time.time()
    run = _new_folder(runs, spec.name, now)
    write_atomic(run.spec, spec_text(spec))
    write_manifest(
        run,
        RunManifest(
            run_id=run.run_id, style=spec.name, identity=run_identity(spec, images), smoke=spec.smoke,
            spec_digest=sha256_json(spec.model_dump(mode="json")), created_at=now, updated_at=now,
            engine=spec.train.engine, engine_reason=engine_reason, seed=spec.train.seed, images=dict(images),
            **_surroundings(),
        ),
    )  # fmt: skip
    return run


def refresh_manifest(run: RunPaths) -> None:
    """Says of a run that was made elsewhere or earlier on what and with what it is done now."""
    if manifest := read_manifest(run):
        write_manifest(run, manifest.model_copy(update=_surroundings()))


def _surroundings() -> dict[str, Any]:
    """This command, this machine and this project, as the manifest has them."""
    return {"argv": sys.argv, **_machine_and_project()}


@functools.cache
def _machine_and_project() -> dict[str, Any]:
    """Asked once a process, which stays what it was when it began: git, nvidia-smi and the packages' files take 0.2 s, and
    a sweep asks twice a run.
    """
    commit, dirty = git_state(PROJECT)
    return {
        "commit": commit, "dirty": dirty, "lock_sha256": _lock_digest(), "packages": package_versions(),
        "python": platform.python_version(), "platform": platform.platform(), "device": device_name(),
    }  # fmt: skip


def _new_folder(runs: RunsDir, style: str, now: float) -> RunPaths:
    """A folder nobody has; a sweep makes many in one second."""
    stamp = dt.datetime.fromtimestamp(now).astimezone().strftime("%Y%m%d-%H%M%S")
    while True:
        run = runs.run(style, f"{stamp}-{secrets.token_hex(2)}")
        with contextlib.suppress(FileExistsError):
            run.root.mkdir(parents=True)
            return run


def read_manifest(run: RunPaths) -> RunManifest | None:
    """The manifest, or None where it cannot be read."""
    try:
        return RunManifest.model_validate(read_json(run.manifest))
    except (BrushsetError, ValidationError):
        return None


def write_manifest(run: RunPaths, manifest: RunManifest) -> None:
    """Writes run.json atomically."""
    write_json(run.manifest, manifest.model_dump(mode="json"))


def update_manifest(run: RunPaths, records: Sequence[StageRecord], *, status: Status, error: str = "") -> None:
    """Brings run.json up to date with the stages' records."""
    manifest = read_manifest(run)
    if manifest is None:
        return
    trained = next((record.data for record in records if record.stage == "train"), {})
    changes = {
        "status": status,
        "error": error,
        "updated_at": time.time(),
        "stages": {record.stage: record.model_dump(mode="json", exclude={"data", "stage"}) for record in records},
        "base_sha256": trained.get("base_sha256", manifest.base_sha256),
        "sd_scripts_commit": trained.get("engine_version", "") if trained.get("engine") == "kohya" else "",
    }
    write_manifest(run, manifest.model_copy(update=changes))


def git_state(folder: Path) -> tuple[str, bool]:
    """Commit and whether tracked files differ from it; ("", False) outside a checkout."""
    commit = _git(folder, "rev-parse", "HEAD")
    return commit, bool(commit) and bool(
        _git(folder, "status", "--porcelain", "--untracked-files=no", "--ignore-submodules")
    )


def package_versions() -> dict[str, str]:
    """Installed versions of what a result depends on, without importing any of it."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def device_name() -> str:
    """The GPU as nvidia-smi names it, else the CPU; asked without importing torch."""
    program = shutil.which("nvidia-smi")
    if program:
        query = [program, "--query-gpu=name,uuid,driver_version", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
        if answer.returncode == 0 and answer.stdout.strip():
            return answer.stdout.strip().replace("\n", "; ")
    return f"CPU ({platform.machine()})"


def _lock_digest() -> str:
    lock = PROJECT / "uv.lock"
    return sha256_file(lock) if lock.is_file() else hashlib.sha256(b"").hexdigest()


def _git(folder: Path, *words: str) -> str:
    program = shutil.which("git")
    if not program:
        return ""
    answer = subprocess.run(
        [program, "-C", str(folder), *words], capture_output=True, text=True, timeout=20, check=False
    )
    return answer.stdout.strip() if answer.returncode == 0 else ""
