"""Will it run here? What is installed, against what is locked; device, disk, sd-scripts, permissions. Imports no torch."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from brushset.cli.devices import list_gpus
from brushset.cli.mps import PROGRAM
from brushset.files import read_toml
from brushset.manifest import device_name
from brushset.paths import PROJECT, cache_dir

NEEDED_GB = 20.0


@dataclass(frozen=True)
class Finding:
    """One check: `ok` false is something that a run would fail on; `fix` says what to do."""

    what: str
    found: str
    ok: bool
    fix: str = ""


def examine(runs_dir: Path, locate_sd_scripts: Callable[[], str]) -> list[Finding]:
    """All checks, in the order in which a run would meet them. `locate_sd_scripts` answers in one line."""
    return [
        _python(),
        *_packages(),
        _device(),
        *_gpus(),
        _disk(runs_dir),
        _writable(runs_dir),
        _writable(cache_dir()),
        Finding("sd-scripts", locate_sd_scripts(), ok=True),
    ]


def _python() -> Finding:
    version = platform.python_version_tuple()
    ok = (3, 10) <= (int(version[0]), int(version[1])) < (3, 14)
    return Finding(
        "Python", platform.python_version(), ok, "" if ok else "use Python 3.10-3.13: uv run --python 3.11 …"
    )


def _packages() -> list[Finding]:
    """Every package that pyproject.toml pins exactly, against what is installed."""
    pins = {}
    for line in read_toml(PROJECT / "pyproject.toml")["project"]["dependencies"]:
        if match := re.match(r"^([A-Za-z0-9_-]+)==([^;\s]+)", line):
            pins[match[1]] = match[2]
    installed = {
        dist.metadata["Name"].lower().replace("_", "-"): dist.version for dist in importlib.metadata.distributions()
    }
    wrong = [
        f"{name} {installed.get(name, 'missing')} (locked {pin})"
        for name, pin in pins.items()
        if installed.get(name) != pin
    ]
    if platform.system() == "Darwin":
        wrong = [text for text in wrong if not text.startswith(("xformers", "bitsandbytes"))]
    found = f"{len(pins)} pinned packages as locked" if not wrong else ", ".join(wrong)
    return [Finding("packages", found, not wrong, "uv sync --locked" if wrong else "")]


def _device() -> Finding:
    name = device_name()
    return Finding("device", name, ok=True, fix="training at full size wants a GPU" if name.startswith("CPU") else "")


def _gpus() -> list[Finding]:
    """What `--gpus` and `--parallel --mps` may be given; nothing where there is no GPU."""
    gpus = list_gpus()
    if not gpus:
        return []
    found = ", ".join(f"{gpu.index}: {gpu.name}, {gpu.free_gb:.0f} GB free" for gpu in gpus)
    program = shutil.which(PROGRAM)
    return [
        Finding("GPUs", found, ok=True),
        Finding("MPS", f"{program}, for --parallel N --mps" if program else f"{PROGRAM} is not on PATH", ok=True),
    ]


def _disk(folder: Path) -> Finding:
    free_gb = shutil.disk_usage(_existing(folder)).free / 1e9
    ok = free_gb >= NEEDED_GB
    return Finding(
        "disk",
        f"{free_gb:.0f} GB free for {folder}",
        ok,
        "" if ok else f"free {NEEDED_GB:.0f} GB, or --runs-dir elsewhere",
    )


def _writable(folder: Path) -> Finding:
    ok = os.access(_existing(folder), os.W_OK)
    return Finding(
        "folder",
        f"{folder} can be written" if ok else f"{folder} cannot be written",
        ok,
        "" if ok else "change its permissions, or name another",
    )


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder
