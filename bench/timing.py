"""Operations, waits, time and memory of a training step, on a CPU or a GPU."""

from __future__ import annotations

import math
import resource
import statistics
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch

from bench.operations import Operations
from brushset.failure import free_memory

_WARM_UPS = 6
"""Steps before anything is measured: CUDA graphs are captured at the fourth."""

_TIMED_A_REPEAT = 10
"""Steps on a GPU; two repeats make the twenty that a median wants."""


def measure(step: Callable[[], object], repeats: int, *, device: str = "cpu", most_s: float = 60.0) -> dict[str, float]:
    """One step, after others, within about `most_s`. On a CPU the smallest times of `repeats`, since others use the machine
    too, and the most memory that the process has held so far; on a GPU the mean and the median of ten a repeat between CUDA
    events, the host's own time, the most memory that torch has reserved for it, and what the GPU did in one step.
    """
    ends = time.monotonic() + most_s
    if device != "cpu":  # what was measured before in this process is none of this step's memory
        free_memory()
        torch.cuda.reset_peak_memory_stats()
    for _ in range(1 if device == "cpu" else _WARM_UPS):
        step()
    with Operations() as counted:
        step()
    found = {
        "operations": float(counted.total),
        "foreach": float(sum(count for name, count in counted.started.items() if name.startswith("_foreach"))),
    }
    if device == "cpu":
        return found | {"synchronising": float(counted.synchronising)} | _on_cpu(step, repeats, ends)
    return found | {"synchronising": float(_count_waits(step))} | _on_gpu(step, repeats, ends)


def _on_cpu(step: Callable[[], object], repeats: int, ends: float) -> dict[str, float]:
    host, wall = [], []
    for done in range(repeats):
        if done and time.monotonic() > ends:
            break
        begun, clock = time.process_time(), time.perf_counter()
        step()
        host.append(time.process_time() - begun)
        wall.append(time.perf_counter() - clock)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"host_s": min(host), "step_s": min(host), "wall_s": min(wall), "peak_mb": peak, "timed": float(len(host))}


def _on_gpu(step: Callable[[], object], repeats: int, ends: float) -> dict[str, float]:
    times, host = [], []
    for done in range(repeats * _TIMED_A_REPEAT):
        if done >= _TIMED_A_REPEAT and time.monotonic() > ends:
            break
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        begun = time.process_time()
        step()
        host.append(time.process_time() - begun)
        last.record()
        times.append((first, last))
    torch.cuda.synchronize()
    milliseconds = [first.elapsed_time(last) for first, last in times]
    seconds = times[0][0].elapsed_time(times[-1][1]) / 1000 / len(times)
    return {
        "host_s": statistics.median(host),
        "step_s": seconds,
        "median_s": statistics.median(milliseconds) / 1000,
        "peak_mb": torch.cuda.max_memory_reserved() / 2**20,
        "timed": float(len(times)),
    } | _profile(step)


def _profile(step: Callable[[], object]) -> dict[str, Any]:
    """What the GPU itself did in a step: a captured one is a launch to the host, and hundreds of kernels still."""
    from torch.profiler import ProfilerActivity, profile

    try:
        with profile(activities=[ProfilerActivity.CUDA]) as told:
            step()
            torch.cuda.synchronize()
        return sum_kernels(told.events() or ())
    except RuntimeError as error:  # a container may keep the counters to itself; the times are worth having without
        return {"kernels_failed": str(error)}


def sum_kernels(events: Iterable[Any]) -> dict[str, float]:
    """How many kernels and copies torch's profiler saw on the GPU, and their seconds, which do not overlap on one stream."""
    from torch.autograd import DeviceType

    spans = [event.time_range.elapsed_us() for event in events
             if event.device_type == DeviceType.CUDA and not event.is_user_annotation]  # fmt: skip
    return {"kernels": float(len(spans)), "gpu_busy_s": sum(spans) / 1e6}


def _count_waits(step: Callable[[], object]) -> int:
    """How often torch says that the host waited for the device."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(each.message) for each in told)


def matrix_rate(device: str) -> float:
    """FLOP/s of a large matrix product: 8192³ in bf16 on a GPU, 1024³ in float32 on one thread of a CPU; the best of 5."""
    side, dtype = (8192, torch.bfloat16) if device == "cuda" else (1024, torch.float32)
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        _wait(device)
        begun = time.perf_counter() if device == "cuda" else time.process_time()
        torch.mm(left, right)
        _wait(device)
        best = min(best, (time.perf_counter() if device == "cuda" else time.process_time()) - begun)
    return 2 * side**3 / best


def count_flops(step: Callable[[], object]) -> int:
    """Matrix products, convolutions and attention of a step, forward and backward."""
    from torch.utils import flop_counter

    def product(_sum: Any, left: Any, right: Any, **_: object) -> int:
        return 2 * math.prod(left) * int(right[-1])

    def attention(*shapes: Any, **_: object) -> int:
        return int(flop_counter.sdpa_flop_count(*shapes[:3]))

    def attention_backward(*shapes: Any, **_: object) -> int:
        return int(flop_counter.sdpa_backward_flop_count(*shapes[:4]))

    aten = torch.ops.aten
    known: dict[Any, Any] = {aten.addmm_: product, aten.baddbmm_: product}
    known[aten._scaled_dot_product_flash_attention_for_cpu] = attention  # noqa: SLF001 - an operator's name
    known[aten._scaled_dot_product_flash_attention_for_cpu_backward] = attention_backward  # noqa: SLF001
    with flop_counter.FlopCounterMode(display=False, custom_mapping=known) as counted:
        step()
    return int(counted.get_total_flops())


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
