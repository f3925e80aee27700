"""CUDA graphs without a GPU: a stand-in records a pass's operations, and does them again as a graph would.

It shows that a pass is fixed: all that changes from one step to the next lies in its inputs and in buffers, and nothing of
it is in the program. What only a GPU can show is in tests/gpu/test_native_on_gpu.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_native_packed import RECIPES, make_styles, open_acting
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from brushset.errors import EnvironmentProblem
from brushset.native import graph as graph_module
from brushset.native.graph import GraphCache
from brushset.native.loop import Update, run_together
from brushset.records import BaseFile


class Recorded(TorchDispatchMode):
    """A CUDAGraph's stand-in. What is recorded has run, which a capture must not: see `capture`."""

    def __init__(self) -> None:
        super().__init__()
        self.tape: list[tuple[Any, Any, Any, Any]] = []
        self.replays = 0

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.tape.append((func, *tree_map(without_history, (args, kwargs or {}, made))))
        return made

    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, made in self.tape:
            given = {each.untyped_storage().data_ptr() for each in tensors(args)}
            if not func._schema.is_mutable and all(
                each.untyped_storage().data_ptr() in given for each in tensors(made)
            ):
                continue  # a view: it looks at memory that is made anew
            again = func(*args, **kwargs)
            for place, value in zip(tensors(made), tensors(again), strict=True):
                if place is not value and place.data_ptr() != value.data_ptr():
                    place.copy_(value)


def without_history(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, torch.Tensor) else leaf


def tensors(tree: Any) -> list[torch.Tensor]:
    return [each for each in tree_leaves(tree) if isinstance(each, torch.Tensor)]


@pytest.fixture
def gradients() -> list[torch.Tensor]:
    """Filled by a test: what a capture leaves as it was."""
    return []


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, gradients: list[torch.Tensor]) -> None:
    @contextlib.contextmanager
    def capture(recorded: Recorded, **_: object) -> Iterator[None]:
        before = [each.clone() for each in gradients]
        with recorded:
            yield
        for each, kept in zip(gradients, before, strict=True):
            each.copy_(kept)

    stream = SimpleNamespace(wait_stream=lambda _other: None)
    cuda = SimpleNamespace(
        Stream=lambda: stream, current_stream=lambda: stream, stream=lambda _: contextlib.nullcontext(),
        graph_pool_handle=lambda: (0, 0), CUDAGraph=Recorded, graph=capture,
    )  # fmt: skip
    stand = SimpleNamespace(cuda=cuda, Tensor=torch.Tensor, OutOfMemoryError=torch.OutOfMemoryError)
    monkeypatch.setattr(graph_module, "torch", stand)


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("unet_only", [True, False])
def test_replayed_passes_train_what_eager_ones_train(
    tmp_path: Path, tiny_base: BaseFile, gradients: list[torch.Tensor], unet_only: bool
) -> None:
    changes = [(keys, {**training, "network_train_unet_only": unet_only, "max_train_epochs": 4})
               for keys, training in RECIPES[:2]]  # fmt: skip
    styles = make_styles(tmp_path, tiny_base, changes)
    found = []
    for captured in (True, False):
        sessions = open_acting(styles, tiny_base, dtype=torch.float32)
        pack = sessions[0].pack
        gradients[:] = [pack.flat.gradients]
        pack.graphs = GraphCache() if captured else None
        told = [update for _, update in run_together(sessions)]
        found.append(([update.loss for update in told if isinstance(update, Update)], pack.flat.master.clone()))
        if captured:
            assert pack.graphs is not None
            replays = [graph.replays for graph, _, _ in pack.graphs._graphs.values()]
            assert len(replays) >= 2
            assert sum(replays) > 4
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-6)


@pytest.mark.usefixtures("stand_in")
def test_a_kind_is_captured_when_it_has_run_three_times() -> None:
    graphs, total = GraphCache(), torch.zeros(2)
    ran = []

    def work(given: Any) -> torch.Tensor:
        ran.append(1)
        total.add_(given["x"])
        return total * 2

    seen = []
    for number in range(6):
        before = total.clone()
        result = graphs.run("kind", {"x": torch.full((2,), float(number))}, work)
        seen.append((len(graphs), len(ran)))
        if number != 3:  # the stand-in runs what it captures
            assert torch.equal(result, 2 * (before + number))
    assert seen == [(0, 1), (0, 2), (0, 3), (1, 4), (1, 4), (1, 4)]


@pytest.mark.usefixtures("stand_in")
def test_a_step_that_cannot_be_captured_says_what_to_do() -> None:
    graphs = GraphCache()

    def work(_given: Any) -> torch.Tensor:
        if graphs._ran["kind"] > 3 or len(calls) == 3:
            raise RuntimeError("operation not permitted when stream is capturing")
        calls.append(1)
        return torch.zeros(1)

    calls: list[int] = []
    for _ in range(3):
        graphs.run("kind", {}, work)
    with pytest.raises(EnvironmentProblem, match=r"not permitted.*cuda_graphs = false"):
        graphs.run("kind", {}, work)
