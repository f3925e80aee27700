"""Operations, waits and CPU seconds of a training step."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable

from bench.operations import Operations


def measure(step: Callable[[], object], repeats: int) -> dict[str, float]:
    """Counts one step after a first one, then takes the smallest CPU time of `repeats`: others use the machine too."""
    step()
    with Operations() as counted:
        step()
    times = []
    for _ in range(repeats):
        begun = time.process_time()
        step()
        times.append(time.process_time() - begun)
    return {
        "operations": counted.total,
        "foreach": sum(count for name, count in counted.started.items() if name.startswith("_foreach")),
        "synchronising": counted.synchronising,
        "cpu_s": min(times),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
