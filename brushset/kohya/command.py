"""The command line that starts sd-scripts: `accelerate launch` with every flag said, so that nothing is taken from a machine.

Accelerate reads the user's own default config wherever `--config_file` is not given, multi-GPU and DeepSpeed settings
included; an own file with the plain settings keeps it out. What is of this machine or this attempt (where the base
model lies, where weights go) overrules the training TOML from here: options on the command line win over the file.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ACCELERATE_FILE = "accelerate.json"
CHILD_SETTINGS: Mapping[str, str] = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "PYTHONUNBUFFERED": "1",
    "COLUMNS": "400",  # rich wraps its messages at 80 when piped
    "TQDM_NCOLS": "120",  # tqdm would fill those 400
    "TOKENIZERS_PARALLELISM": "false",
}
_MAX_THREADS = 16


@dataclass(frozen=True)
class Launch:
    """What differs from run to run. Paths are absolute or relative to the run folder; an override of None is a switch."""

    script: Path
    mixed_precision: str
    cpu: bool
    overrides: Mapping[str, str | None] = field(default_factory=dict)
    processes: int = 1


def accelerate_settings(processes: int) -> dict[str, object]:
    """What stands in accelerate.json: the plain settings of one machine."""
    return {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "MULTI_GPU" if processes > 1 else "NO",
        "num_machines": 1,
        "num_processes": processes,
        "use_cpu": False,
        "debug": False,
    }


def build_command(launch: Launch, *, config_dir: str = "config") -> list[str]:
    """The argv. `config_dir` holds accelerate.json, training.toml and dataset.toml.

    Several processes go one to each visible GPU, and meet at a port that is free: the default one serves one training
    a machine. Never with `--cpu`: accelerate then starts a single process and says nothing.
    """
    assert not (launch.cpu and launch.processes > 1), "accelerate would train in one process"
    return [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        *("--config_file", f"{config_dir}/{ACCELERATE_FILE}"),
        *("--num_processes", str(launch.processes)),
        *("--num_machines", "1"),
        *("--mixed_precision", launch.mixed_precision),
        *("--dynamo_backend", "no"),
        *("--num_cpu_threads_per_process", str(count_threads(launch.processes))),
        *(["--cpu"] if launch.cpu else []),
        *(["--multi_gpu", "--main_process_port", "0"] if launch.processes > 1 else []),
        str(launch.script),
        *("--config_file", f"{config_dir}/training.toml"),
        *("--dataset_config", f"{config_dir}/dataset.toml"),
        *(word for key, value in launch.overrides.items() for word in (f"--{key}", value) if word is not None),
    ]


def count_threads(processes: int = 1) -> int:
    """CPU threads of each process: what OMP_NUM_THREADS says, else its share of the physical cores, at most 16."""
    if (given := os.environ.get("OMP_NUM_THREADS", "")).isdigit() and int(given):
        return int(given)
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    return max(1, min(cores // processes, _MAX_THREADS))
