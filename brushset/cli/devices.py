"""Which GPUs does a command use, and do several styles at once fit?

`--gpus 0,1` spreads one training over both, or, with `--parallel`, the styles over the GPUs. Ids are nvidia-smi's, or
UUIDs. They rule where a run happens, not what it is: only their number is a setting (`[train] processes`).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass

import psutil

from brushset.errors import EnvironmentProblem, UsageError
from brushset.spec import StyleSpec
from brushset.trees import available_cores

THREADS = "OMP_NUM_THREADS"  # MKL and OpenBLAS follow it, unless told otherwise by variables of their own
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_ID = re.compile(r"\d+|(GPU|MIG)-[\w/-]+")
_QUERY_LIMIT_S = 20

# Gigabytes. On a CPU: peak of a full-size training at 128 px, docs/LOG.md. On a GPU: estimates from weights, LoRA
# with optimizer state, CUDA context, and activations of a 512 px image; not measured yet, so they only ever warn.
_CPU_GB = 8.5
_CPU_GB_AN_IMAGE = 1.5
_GPU_GB = 3.5
_GPU_GB_AN_IMAGE = 1.3
_CHECKPOINTED_SHARE = 0.3


@dataclass(frozen=True)
class Gpu:
    """One GPU as nvidia-smi tells it."""

    index: str
    uuid: str
    name: str
    free_gb: float


def list_gpus() -> list[Gpu]:
    """The GPUs of this machine; empty where nvidia-smi is not there or sees none. Imports no torch."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=index,uuid,name,memory.free", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=_QUERY_LIMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [line.split(", ") for line in answer.stdout.splitlines()] if answer.returncode == 0 else []
    return [
        Gpu(index, uuid, name, float(free) / 1024 if free.strip().isdigit() else 0.0)
        for index, uuid, name, free in (row for row in rows if len(row) == 4)
    ]


def parse_gpus(text: str | None) -> tuple[str, ...]:
    """`"0,1"` as ids; empty where the option was not given.

    Raises:
        UsageError: no list of ids.
    """
    if text is None:
        return ()
    ids = tuple(part.strip() for part in text.split(","))
    wrong = [part for part in ids if not _ID.fullmatch(part)]
    if wrong or len(set(ids)) < len(ids):
        what = f'"{wrong[0]}" is no GPU' if wrong else "a GPU is named twice"
        raise UsageError(f"--gpus {text}: {what}; fix: ids as nvidia-smi lists them, such as --gpus 0,1")
    return ids


def use_gpus(ids: Sequence[str], environ: MutableMapping[str, str], seen: Sequence[Gpu]) -> None:
    """Lets this process and all its children see these GPUs alone, in this order; no ids change nothing.

    Raises:
        EnvironmentProblem: a GPU that is not here, or that whoever started us keeps from us.
    """
    if not ids:
        return
    given = ",".join(ids)
    if not seen:
        raise EnvironmentProblem(f"--gpus {given}: no NVIDIA GPU is seen here (nvidia-smi); fix: leave --gpus out")
    known = {name for gpu in seen for name in (gpu.index, gpu.uuid)}
    missing = [name for name in ids if name.startswith(("GPU-", *"0123456789")) and name not in known]
    if missing:
        there = ", ".join(f"{gpu.index} ({gpu.name})" for gpu in seen)
        raise EnvironmentProblem(f"--gpus {given}: no GPU {missing[0]} here; there are {there}")
    allowed = [name.strip() for name in environ.get(_VISIBLE, "").split(",") if name.strip()]
    barred = [name for name in ids if allowed and name not in allowed]
    if barred:
        raise EnvironmentProblem(
            f"--gpus {given}: {_VISIBLE}={environ[_VISIBLE]} keeps GPU {barred[0]} from this process; "
            f"fix: --gpus out of {', '.join(allowed)}"
        )
    environ[_VISIBLE] = given
    environ.setdefault(
        "CUDA_DEVICE_ORDER", "PCI_BUS_ID"
    )  # CUDA counts the fastest GPU as 0 otherwise, nvidia-smi does not


def see_only(given: str | None) -> None:
    """Keeps this process and its children to the GPUs that `--gpus` names; call it before torch looks for any."""
    if ids := parse_gpus(given):
        use_gpus(ids, os.environ, list_gpus())


def require_gpus(processes: int, environ: Mapping[str, str], seen: Sequence[Gpu]) -> None:
    """Raises UsageError where one training is to be spread over more GPUs than can be seen."""
    visible = [name for name in environ[_VISIBLE].split(",") if name.strip()] if _VISIBLE in environ else seen
    if processes > max(1, min(len(visible), len(seen))):
        raise UsageError(
            f"[train] processes = {processes} wants as many GPUs, and {min(len(visible), len(seen))} are seen here; "
            "fix: --gpus with ids of nvidia-smi, or processes = 1"
        )


def slot_environment(slot: int, slots: int, *, gpus: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of one of `slots` processes at once: all of ours, its GPU in turn, its share of the cores."""
    limit = {} if environ.get(THREADS) else {THREADS: str(max(1, available_cores() // slots))}
    own_gpu = {_VISIBLE: gpus[slot % len(gpus)]} if gpus else {}
    return {**environ, **limit, **own_gpu}


def visible_gpus(environ: Mapping[str, str], seen: Sequence[Gpu]) -> list[str]:
    """The GPUs that whoever started us lets us have, or all of this machine."""
    if _VISIBLE not in environ:
        return [gpu.index for gpu in seen]
    return [name.strip() for name in environ[_VISIBLE].split(",") if name.strip()] if seen else []


def wanted_gb(spec: StyleSpec, *, cuda: bool) -> tuple[float, float]:
    """About how much main memory and GPU memory a training of full size takes."""
    train = spec.train
    images = train.batch_size * (spec.dataset.resolution / 512) ** 2
    if train.gradient_checkpointing:
        images *= _CHECKPOINTED_SHARE
    width = 2 if train.mixed_precision == "no" else 1
    if cuda:
        return _CPU_GB, width * (_GPU_GB + images * _GPU_GB_AN_IMAGE)
    return _CPU_GB + images * _CPU_GB_AN_IMAGE * width, 0.0


def memory_warnings(specs: Sequence[StyleSpec], at_once: int, *, gpus: Sequence[str], seen: Sequence[Gpu]) -> list[str]:
    """A line for each memory that the hungriest `at_once` of these trainings would overrun together."""
    at_once = min(at_once, len(specs))
    if not specs:
        return []
    wanted = sorted((wanted_gb(spec, cuda=bool(seen)) for spec in specs), reverse=True)[:at_once]
    free = psutil.virtual_memory().available / 1e9
    found = []
    if (main := sum(one[0] for one in wanted)) > free:
        found.append(f"{at_once} styles at once want about {main:.0f} GB of main memory, {free:.0f} GB are free")
    mine = [gpu for gpu in seen if not gpus or gpu.index in gpus or gpu.uuid in gpus] or list(seen)
    if mine:
        each = -(-at_once // (len(mine) if gpus else 1))  # without --gpus all of them go to the first
        want = max(one[1] for one in wanted) * each
        free = min(gpu.free_gb for gpu in (mine if gpus else mine[:1]))
        if want > free:
            found.append(f"{each} styles at once on a GPU want about {want:.0f} GB, {free:.0f} GB are free there")
    return [f"{line}; fix: a smaller --parallel, or a smaller --batch-size" for line in found]
