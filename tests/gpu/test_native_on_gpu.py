"""CUDA graphs: captured steps train what eager ones train, to the bit, and nothing in them waits for the device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_native_packed import RECIPES, make_styles

from brushset.bases.load import load_components
from brushset.native.dataset import epoch_batches
from brushset.native.loop import Update, run_together
from brushset.native.session import Session, Style, open_pack
from brushset.records import BaseFile

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),  # what has no deterministic kernel is told by a warning
]


@pytest.fixture(autouse=True)
def repeatable() -> Iterator[None]:
    """The same kernels every time: bits can be compared."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(mode=False)
    torch.backends.cudnn.benchmark = before


def open_on_gpu(styles: list[Style], base: BaseFile, *, dtype: torch.dtype, **how: bool) -> list[Session]:
    models = load_components(base, device="cuda", dtype=dtype, parts=("unet", "text_encoder", "tokenizer"))
    return open_pack(styles, models, **how)


def draws_of(sessions: list[Session], number: int) -> dict[int, Any]:
    """A batch of two of each style."""
    made = {}
    for session in sessions:
        batches = epoch_batches(session.images, session.settings.dataset, seed=1, epoch=1)
        made[session.row] = session.draw(next(batch for batch in batches if len(batch.images) == 2), number)
    return made


def step(sessions: list[Session], draws: dict[int, Any]) -> torch.Tensor:
    losses = sessions[0].pack.add_gradients(draws).clone()
    for session in sessions:
        session.set_rates()
        session.step = min(session.step + 1, session.length.steps - 1)
    sessions[0].pack.update([session.row for session in sessions], [session.optimizer for session in sessions])
    return losses


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("unet_only", [True, False])
def test_captured_steps_train_what_eager_ones_train(
    tmp_path: Path, tiny_base: BaseFile, precision: torch.dtype, unet_only: bool
) -> None:
    changes = [(dataset, {**training, "network_train_unet_only": unet_only}) for dataset, training in RECIPES]
    styles = make_styles(tmp_path, tiny_base, changes)
    found = []
    for captured in (True, False):
        sessions = open_on_gpu(styles, tiny_base, dtype=precision, cuda_graphs=captured)
        pack = sessions[0].pack
        told = [update for _, update in run_together(sessions)]
        losses = [update.loss for update in told if isinstance(update, Update)]
        assert len(losses) == sum(style.length.steps for style in styles)
        assert (pack.graphs is not None and len(pack.graphs) > 2) == captured
        found.append((losses, pack.flat.master.clone()))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("captured", [True, False])
@pytest.mark.parametrize("count", [1, 3])
def test_a_step_never_waits_for_the_device(tmp_path: Path, tiny_base: BaseFile, captured: bool, count: int) -> None:
    styles = make_styles(tmp_path, tiny_base, RECIPES[:count])
    sessions = open_on_gpu(styles, tiny_base, dtype=torch.bfloat16, cuda_graphs=captured)
    for number in range(6):
        step(sessions, draws_of(sessions, number))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number in range(6, 12):
            step(sessions, draws_of(sessions, number))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    graphs = sessions[0].pack.graphs
    assert (len(graphs) if graphs is not None else 0) == (2 if captured else 0)


def test_replays_take_no_further_memory_and_read_their_own_inputs(tmp_path: Path, tiny_base: BaseFile) -> None:
    styles = make_styles(tmp_path, tiny_base, RECIPES)
    sessions = open_on_gpu(styles, tiny_base, dtype=torch.bfloat16)
    for number in range(6):
        step(sessions, draws_of(sessions, number))
    torch.cuda.synchronize()
    held = torch.cuda.memory_reserved()
    losses = [step(sessions, draws_of(sessions, number)) for number in range(6, 40)]  # the host runs far ahead
    torch.cuda.synchronize()
    assert torch.cuda.memory_reserved() == held
    assert len({tuple(loss.tolist()) for loss in losses}) == len(losses)
    assert all(torch.isfinite(loss).all() for loss in losses)


def test_styles_that_come_and_go_are_kinds_of_their_own(tmp_path: Path, tiny_base: BaseFile) -> None:
    """Rows 0 and 2, then row 1, then all: each kind's graph adds to its own rows and to no other."""
    styles = make_styles(tmp_path, tiny_base, RECIPES)
    sessions = open_on_gpu(styles, tiny_base, dtype=torch.float32)
    gradients = sessions[0].pack.flat.gradients
    expected: dict[tuple[int, ...], torch.Tensor] = {}
    for number in range(8):
        for rows in ((0, 2), (1,), (0, 1, 2)):
            chosen = [sessions[row] for row in rows]
            gradients.zero_()
            sessions[0].pack.add_gradients(draws_of(chosen, 0))
            assert [bool(gradients[row].any()) for row in range(3)] == [row in rows for row in range(3)]
            first = expected.setdefault(rows, gradients.clone())
            assert torch.equal(gradients, first), f"round {number}, rows {rows}"
    assert sessions[0].pack.graphs is not None
    assert len(sessions[0].pack.graphs) == 3


def test_compiled_blocks_are_captured_too(tmp_path: Path, tiny_base: BaseFile) -> None:
    styles = make_styles(tmp_path, tiny_base, RECIPES)
    losses = []
    for compiled in (False, True):
        sessions = open_on_gpu(styles, tiny_base, dtype=torch.float32, compiled=compiled)
        losses.append(torch.stack([step(sessions, draws_of(sessions, number)) for number in range(8)]))
        assert sessions[0].pack.graphs is not None
        assert len(sessions[0].pack.graphs) == 2
    assert torch.allclose(losses[0], losses[1], rtol=1e-3)
