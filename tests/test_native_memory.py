"""What a style takes beside the models is told as it is."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_native_packed import make_styles, open_acting

from brushset.native import memory
from brushset.native.loop import run_together
from brushset.native.memory import describe_memory, style_bytes
from brushset.records import BaseFile


@pytest.mark.parametrize("optimizer", ["AdamW", "Lion", "Prodigy"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_styles_bytes_are_those_that_it_comes_to_hold(
    tmp_path: Path, tiny_base: BaseFile, optimizer: str, dtype: torch.dtype
) -> None:
    rate = 1.0 if optimizer == "Prodigy" else 1e-4
    recipe = {"unet_lr": rate, "text_encoder_lr": [rate], "learning_rate": rate, "optimizer_type": optimizer,
              "max_train_epochs": 1, "mixed_precision": "bf16" if dtype == torch.bfloat16 else "no"}  # fmt: skip
    sessions = open_acting(make_styles(tmp_path, tiny_base, [({}, recipe)]), tiny_base, dtype=dtype)
    foretold = style_bytes(sessions[0])
    sessions[0].length = sessions[0].length.__class__(1, 1, 1, 1)
    list(run_together(sessions))
    (session,) = sessions
    flat = session.pack.flat
    held = {each.data_ptr(): each for each in (flat.master, flat.working, flat.gradients, flat.summed)}
    for values in session.optimizer.state.values():
        held |= {value.data_ptr(): value for value in values.values() if isinstance(value, torch.Tensor)}
    held |= {each.data_ptr(): each for each in session.latents.mean.values()}
    assert foretold == pytest.approx(sum(each.nbytes for each in held.values()), rel=1e-4)  # but for counters


def test_on_a_gpu_it_is_said_how_many_more_would_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in: there is no GPU here."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (10_000_000_000, 80_000_000_000))
    monkeypatch.setattr(memory, "style_bytes", lambda session: session.bytes)
    pack = SimpleNamespace(device=torch.device("cuda"))
    sessions: list[Any] = [SimpleNamespace(pack=pack, bytes=size) for size in (260_000_000, 300_000_000)]
    assert describe_memory(sessions) == (
        "a style takes 260 to 300 MB beside the models, and what its batches take; 10.0 of 80.0 GB are free, enough for 33 "
        "more without batches"
    )
