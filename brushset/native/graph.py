"""CUDA graphs: a step's some 2,000 kernels started by one call instead of as many.

One graph for each kind of pass (bucket, styles, samples) and one for the update. What torch's documentation asks for
("CUDA semantics", CUDA graphs) and how it is met:
- Passes of a kind run as they are a few times before, on the stream of the capture: that chooses cuDNN's algorithms, makes
  cuBLAS's workspaces, tables and the optimizer's moments. Work there waits for the main stream, and the main stream for it.
- Captured kernels read and write fixed places. Inputs are copied there on the stream of the replay, so behind the kernels
  of the replay before; pinned memory that they come from is torch's, which reuses none that a copy still reads.
  Gradients, weights and moments lie in the flat buffers and in the optimizer; rates are tensors that are filled between
  replays; nothing draws random numbers on the device. Views of a pass's rows are fixed with the kind.
- Graphs share one memory pool. No two run at once, and what one leaves there (the losses) is copied away before the next.
- Capturing runs nothing: the capture is followed by a replay, so weights and gradients are as without graphs.
A capture waits for the device, once a kind. Rare kinds stay as they are: a kind is captured when it comes again often.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch

from brushset.errors import EnvironmentProblem

Inputs = Mapping[str, torch.Tensor]

_WARM_UPS = 3
"""Passes before a capture, as in torch's documentation."""

_MOST_GRAPHS = 32
"""Kinds that are captured: styles' batches pair up in many ways, most of them seldom. A graph's own nodes take megabytes."""


class GraphCache:
    """Graphs by kind. Inputs are copied to where the captured kernels read; the result is where they write, and holds until
    the next run.
    """

    def __init__(self) -> None:
        self._ran: Counter[Hashable] = Counter()
        self._graphs: dict[Hashable, tuple[Any, dict[str, torch.Tensor], torch.Tensor]] = {}
        self._stream = torch.cuda.Stream()
        self._pool = torch.cuda.graph_pool_handle()

    def __len__(self) -> int:
        """How many were captured."""
        return len(self._graphs)

    def run(self, kind: Hashable, inputs: Inputs, work: Callable[[Inputs], torch.Tensor]) -> torch.Tensor:
        """Does `work` on the inputs. It must not read from the device, and find all else where it was the last time.

        Raises:
            EnvironmentProblem: the work could not be captured; nothing was done.
        """
        if kind not in self._graphs:
            if self._ran[kind] < _WARM_UPS or len(self._graphs) >= _MOST_GRAPHS:
                self._ran[kind] += 1
                return self._warm_up(inputs, work)
            self._graphs[kind] = self._capture(inputs, work)
        graph, static, result = self._graphs[kind]
        for name, tensor in inputs.items():
            static[name].copy_(tensor, non_blocking=True)
        graph.replay()
        return result

    def _warm_up(self, inputs: Inputs, work: Callable[[Inputs], torch.Tensor]) -> torch.Tensor:
        main = torch.cuda.current_stream()
        self._stream.wait_stream(main)
        with torch.cuda.stream(self._stream):
            result = work(inputs)
        main.wait_stream(self._stream)
        return result

    def _capture(
        self, inputs: Inputs, work: Callable[[Inputs], torch.Tensor]
    ) -> tuple[Any, dict[str, torch.Tensor], torch.Tensor]:
        static = {name: tensor.clone() for name, tensor in inputs.items()}
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                result = work(static)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise EnvironmentProblem(
                f"a step could not be captured as a CUDA graph: {error}; set [train] cuda_graphs = false"
            ) from error
        return graph, static, result


def make_graphs(device: torch.device) -> GraphCache | None:
    """A cache where there is a GPU, else None."""
    return GraphCache() if device.type == "cuda" and torch.cuda.is_available() else None
