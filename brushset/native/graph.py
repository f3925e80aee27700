"""CUDA graphs: a step's some 2,500 kernels started by one call instead of as many.

One graph for each kind of pass (bucket, styles, samples) and one for the update. The first pass of a kind runs as it is,
which also chooses cuDNN's algorithms and makes the optimizer's moments; the second is captured and replayed; memory is
shared by all, since no two run at once. Capturing runs nothing, so weights and gradients are as without graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch

Inputs = Mapping[str, torch.Tensor]


class GraphCache:
    """Graphs by kind. Inputs are copied to where the captured kernels read; the result is where they write."""

    def __init__(self, limit: int = 24) -> None:
        self._limit = limit
        self._seen: set[Hashable] = set()
        self._graphs: dict[Hashable, tuple[Any, dict[str, torch.Tensor], torch.Tensor]] = {}
        self._pool: Any = None

    def __len__(self) -> int:
        """How many were captured."""
        return len(self._graphs)

    def run(self, kind: Hashable, inputs: Inputs, work: Callable[[Inputs], torch.Tensor]) -> torch.Tensor:
        """Does `work` on the inputs, captured from the second time on; kinds beyond the limit stay eager."""
        if kind in self._graphs:
            return self._replay(kind, inputs)
        if kind not in self._seen or len(self._graphs) >= self._limit:
            self._seen.add(kind)
            return work(inputs)
        static = {name: tensor.clone() for name, tensor in inputs.items()}
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = work(static)
        self._pool = graph.pool()
        self._graphs[kind] = (graph, static, result)
        return self._replay(kind, inputs)

    def _replay(self, kind: Hashable, inputs: Inputs) -> torch.Tensor:
        graph, static, result = self._graphs[kind]
        for name, tensor in inputs.items():
            static[name].copy_(tensor, non_blocking=True)
        graph.replay()
        return result


def make_graphs(device: torch.device) -> GraphCache | None:
    """A cache where there is a GPU, else None."""
    return GraphCache() if device.type == "cuda" and torch.cuda.is_available() else None
