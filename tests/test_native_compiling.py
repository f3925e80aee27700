"""Compiled blocks train what eager ones train, and compiled code is kept. Inductor compiles C++ here, for CPUs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from test_native_packed import make_styles, open_acting

from brushset.native.compiling import compile_blocks, compile_seconds
from brushset.native.dataset import epoch_batches
from brushset.native.session import Session
from brushset.records import BaseFile

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")]


def gradients(session: Session) -> torch.Tensor:
    flat = session.pack.flat
    flat.gradients.zero_()
    batches = epoch_batches(session.images, session.settings.dataset, seed=1, epoch=1)
    session.backward(next(batch for batch in batches if len(batch.images) == 2), 0)
    return flat.gradients.clone()


@pytest.mark.filterwarnings("ignore::Warning:torch")  # its own, while it traces
def test_compiled_blocks_have_the_gradients_of_eager_ones(
    tmp_path: Path, tiny_base: BaseFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.setattr("torch._inductor.config.cpp.simdlen", 1)  # g++ is done sooner with code without vectors
    (style,) = make_styles(tmp_path, tiny_base, [({"resolution": 128}, {"network_train_unet_only": True})])
    (session,) = open_acting([style], tiny_base, dtype=torch.float32)
    eager = gradients(session)
    before = compile_seconds()
    assert compile_blocks(session.pack.unet.mid_block) == 3  # two residual blocks and a transformer block
    compiled = gradients(session)
    spent = compile_seconds() - before
    assert spent > 0.1
    print(f"relative difference {((compiled - eager).norm() / eager.norm()).item():.1e}, compiled in {spent:.1f} s")
    assert (compiled - eager).norm() < 1e-5 * eager.norm()
    assert torch.equal(gradients(session), compiled)
    assert compile_seconds() - before == pytest.approx(spent, abs=1e-6)  # the second pass compiles nothing
    assert any((tmp_path / "inductor").rglob("*.so")), "compiled code is kept in the cache"
