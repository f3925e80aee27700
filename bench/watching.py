"""What is watched while images are made: how often the UNet is asked, and the most memory that is held."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import psutil
import torch

_WATCH_S = 0.01


@contextlib.contextmanager
def unet_calls(unet: Any) -> Iterator[list[int]]:
    """Counts how often the UNet is asked."""
    count = [0]

    def add(*_: Any) -> None:
        count[0] += 1

    hook = unet.register_forward_pre_hook(add)
    try:
        yield count
    finally:
        hook.remove()


@contextlib.contextmanager
def peak_mb(device: str) -> Iterator[list[float]]:
    """Most memory held meanwhile: of the GPU what tensors took, else what the process grew to."""
    peak = [0.0]
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        yield peak
        peak[0] = torch.cuda.max_memory_allocated() / 1e6
        return
    process, done = psutil.Process(), threading.Event()

    def watch() -> None:
        while not done.wait(_WATCH_S):
            peak[0] = max(peak[0], process.memory_info().rss / 1e6)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()
        peak[0] = max(peak[0], process.memory_info().rss / 1e6)
