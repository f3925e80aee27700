"""Why did a trainer die, and did memory end? From the last lines of a log to one line that names the cause and, where
known, the fix; from an exception to whether less at a time would do, and what is to be freed before that.
"""

from __future__ import annotations

import gc
import re
import signal
import sys
from collections.abc import Iterable, Sequence

_ACCELERATE = re.compile(r"returned non-zero exit status (\d+)|died with <Signals\.(\w+): (\d+)>")
_EXCEPTION = re.compile(r"^(?:[A-Za-z_][\w.]*\.)?([A-Z]\w*(?:Error|Exception|Interrupt|Invalid|Exit))(?::\s*(.*))?$")
_BY_RANK = re.compile(r"^\[rank(\d+)\]: ?")
_FIRST_TO_FAIL = re.compile(r"^\s*rank\s+: (\d+) \(local_rank: \d+\)\s+exitcode\s+: (-?\d+) \(pid: \d+\)", re.MULTILINE)
_TORCHS_LAUNCHER = re.compile(r"torch/distributed/elastic/multiprocessing/api\.py:\d+\] ")
_WRAPPERS = frozenset({"CalledProcessError", "ChildFailedError"})
_GPU_MEMORY = re.compile(r"CUDA out of memory|OutOfMemoryError|CUDNN_STATUS_ALLOC_FAILED|CUBLAS_STATUS_ALLOC_FAILED")
_OUT_OF_MEMORY = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "failed to allocate memory",
    "bad_alloc",
    "bad allocation",
    "cublas_status_alloc_failed",
)
GPU_FAILED = "the GPU or its driver failed"
_CAUSES = (
    (_GPU_MEMORY.pattern, "out of GPU memory; fix: a smaller [train] batch_size, or gradient_checkpointing = true"),
    (r"No space left on device|Errno 28|Disk quota exceeded|Errno 122", "the disk is full; fix: free space where runs/ lies"),
    (
        r"DefaultCPUAllocator: not enough memory|Cannot allocate memory|\bMemoryError\b",
        "out of main memory; fix: a smaller [train] batch_size or vae_batch_size",
    ),
    (
        r"Unable to open file.*shm|Shared memory manager|unable to allocate shared memory|/dev/shm",
        "shared memory (/dev/shm) is full; fix: [train] data_loader_workers = 0, or a container with --shm-size",
    ),
    (r"No data found\. Please verify", "it found no images to train on; fix: see [general] and [[datasets]] of config/dataset.toml"),
    (
        (r"Required library version not found: libbitsandbytes|CUDA Setup failed|No module named 'bitsandbytes'"
        r"|libbitsandbytes\w*\.so: cannot open"),
        'bitsandbytes does not fit to this CUDA; fix: [train] optimizer = "AdamW"',
    ),
    (
        r"error: unrecognized arguments|error: argument|invalid choice",
        "the trainer does not know an option; fix: see the log's usage message",
    ),
    (r"ModuleNotFoundError|ImportError", "a package is missing; fix: uv sync --locked"),
    (r"no kernel image is available", "this torch was not built for this GPU; fix: a torch for its CUDA architecture"),
    (r"NCCL error|ProcessGroupNCCL|ncclUnhandled", "the GPUs cannot talk to each other (NCCL); fix: [train] processes = 1"),
    (r"CUDA error|CUBLAS_STATUS|cuDNN error|NVML", f"{GPU_FAILED}; fix: see nvidia-smi"),
)  # fmt: skip


def is_out_of_gpu_memory(lines: Iterable[str]) -> bool:
    """Whether a smaller batch would have helped."""
    return any(_GPU_MEMORY.search(line) for line in lines)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ended, a GPU's or the machine's, by whichever library says so: a class of its own in torch on a GPU,
    on a CPU an error that only its text tells from others.
    """
    text = str(error).lower()
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or any(mark in text for mark in _OUT_OF_MEMORY)


def free_memory() -> None:
    """Gives back what nothing refers to any more. Cycles inside a pipeline keep its weights alive until they are collected,
    and a GPU's memory stays with torch.
    """
    gc.collect()
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def explain_failure(lines: Sequence[str], code: int | None) -> tuple[str, str]:
    """How it ended and why, from the last lines of a log: `("exit code 2", "out of GPU memory; fix: …")`.

    Behind `accelerate launch` every failure has exit code 1; its last lines hold the true one.
    """
    lines, code = _of_the_first_to_fail(lines, code)
    status = "stopped" if code is None else f"killed by {_signal_name(-code)}" if code < 0 else f"exit code {code}"
    for line in reversed(lines):
        if match := _ACCELERATE.search(line):
            status = f"killed by {match[2]}" if match[2] else f"exit code {match[1]}"
            break
    for pattern, cause in _CAUSES:
        found = [line.strip() for line in lines if re.search(pattern, line)]
        if found:
            return status, _with_what_is_missing(cause, found)
    for line in reversed(lines):
        if (match := _EXCEPTION.match(line.strip())) and match[1] not in _WRAPPERS:
            return status, f"{match[1]}: {match[2]}" if match[2] else match[1]
    if "SIGKILL" in status:
        return status, "killed from outside, most often because main memory ran out; fix: see dmesg, or a smaller batch"
    said = [line for line in lines if not _ACCELERATE.search(line)]
    return status, f'last line "{said[-1][:200]}"' if said else "it said nothing"


def last_words(lines: Sequence[str], most: int) -> list[str]:
    """The last `most` lines of a trainer; the 50 that torch's launcher of several processes says after them are left out."""
    end = next((number for number, line in enumerate(lines) if _TORCHS_LAUNCHER.search(line)), len(lines))
    return list(lines[max(0, end - most) : end])


def _of_the_first_to_fail(lines: Sequence[str], code: int | None) -> tuple[list[str], int | None]:
    """Of several processes: the log without the words of those that failed since another was gone, and that one's exit code.

    torch begins the lines of a process that dies with `[rank0]: `; its launcher tells last of the one that failed first.
    """
    told = _FIRST_TO_FAIL.findall("\n".join(lines))
    ranks, first = [_BY_RANK.match(line) for line in lines], told[-1][0] if told else None
    own = [line[rank.end() :] if rank else line for line, rank in zip(lines, ranks, strict=True)
           if rank is None or first in {None, rank[1]}]  # fmt: skip
    return own, int(told[-1][1]) if told else code


def _with_what_is_missing(cause: str, found: Sequence[str]) -> str:
    """Names the package where one is missing."""
    names = [match[1] for line in found if (match := re.search(r"No module named '([\w.]+)'", line))]
    return cause.replace("a package is missing", f"the package {names[-1]} is missing") if names else cause


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
