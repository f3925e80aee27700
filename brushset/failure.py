"""Why did a trainer die? From the last lines of its log to one line that names the cause and, where known, the fix."""

from __future__ import annotations

import re
from collections.abc import Sequence

_ACCELERATE = re.compile(r"returned non-zero exit status (\d+)|died with <Signals\.(\w+): (\d+)>")
_EXCEPTION = re.compile(r"^(?:[A-Za-z_][\w.]*\.)?([A-Z]\w*(?:Error|Exception|Interrupt|Invalid|Exit))(?::\s*(.*))?$")
_WRAPPERS = frozenset({"CalledProcessError", "ChildFailedError"})
_CAUSES = (
    (r"CUDA out of memory|torch\.OutOfMemoryError|OutOfMemoryError", "out of GPU memory; fix: a smaller [train] batch_size, or gradient_checkpointing = true"),
    (r"No space left on device|Errno 28|Disk quota exceeded", "the disk is full; fix: free space where runs/ lies"),
    (r"DefaultCPUAllocator: not enough memory|Cannot allocate memory|\bMemoryError\b", "out of main memory; fix: a smaller [train] batch_size or vae_batch_size"),
    (r"error: unrecognized arguments|error: argument|invalid choice", "the trainer does not know an option; fix: see the log's usage message"),
    (r"ModuleNotFoundError|ImportError", "a package is missing; fix: uv sync --locked"),
    (r"CUDA error|CUBLAS_STATUS|cuDNN error|NVML", "the GPU or its driver failed; fix: see nvidia-smi"),
)  # fmt: skip


def explain_failure(lines: Sequence[str], code: int | None) -> tuple[str, str]:
    """How it ended and why, from the last lines of a log: `("exit code 2", "out of GPU memory; fix: …")`.

    Behind `accelerate launch` every failure has exit code 1; its last line holds the true one.
    """
    status = "stopped" if code is None else f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    for line in reversed(lines):
        if match := _ACCELERATE.search(line):
            status = f"killed by {match[2]}" if match[2] else f"exit code {match[1]}"
            break
    for pattern, cause in _CAUSES:
        if any(re.search(pattern, line) for line in lines):
            return status, cause
    for line in reversed(lines):
        if (match := _EXCEPTION.match(line.strip())) and match[1] not in _WRAPPERS:
            return status, f"{match[1]}: {match[2]}" if match[2] else match[1]
    if "SIGKILL" in status or "signal 9" in status:
        return status, "killed from outside, most often because main memory ran out"
    said = [line for line in lines if not _ACCELERATE.search(line)]
    return status, f'last line "{said[-1][:200]}"' if said else "it said nothing"
