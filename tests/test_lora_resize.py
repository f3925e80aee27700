"""A lower rank keeps what the SVD of the whole ΔW would keep, at the strength it had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_files import lora_state, save, write_lora

from brushset.errors import UsageError
from brushset.lora.adapter import Factors, read_adapter
from brushset.lora.deltas import compare_deltas
from brushset.lora.metadata import read_metadata
from brushset.lora.resize import resize, write_resized

NAME = "lora_unet_mid_block_attentions_0_proj_in"


def factor(rank: int, *, alpha: float, kernel: tuple[int, ...] = (), seed: int = 0) -> Factors:
    import torch

    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, 24, *kernel, generator=generator)
    up = torch.randn(40, rank, *([1] * len(kernel)), generator=generator)
    return Factors(down, up * 2.0 ** -torch.arange(rank).view(1, rank, *([1] * len(kernel))), alpha)


@given(rank=st.integers(1, 8), kept=st.integers(1, 8), alpha=st.floats(0.1, 32), seed=st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_it_is_the_svd_of_the_whole_delta(rank: int, kept: int, alpha: float, seed: int) -> None:
    import torch

    before = factor(rank, alpha=alpha, seed=seed)
    after, report = resize({NAME: before}, rank=kept)
    left, core, right = torch.linalg.svd(before.delta(), full_matrices=False)
    best = (left[:, :kept] * core[:kept]) @ right[:kept]
    assert after[NAME].rank == min(rank, kept)
    assert (after[NAME].delta() - best).norm() <= 1e-5 * best.norm()
    share = core[:kept].square().sum() / core.square().sum()
    assert report.modules[NAME].energy == pytest.approx(share.item(), abs=1e-5)


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("kernel", [(), (1, 1), (3, 3)])
def test_energy_is_kept_at_the_least_rank(energy: float, kernel: tuple[int, ...]) -> None:
    before = factor(8, alpha=4.0, kernel=kernel)
    after, report = resize({NAME: before}, energy=energy)
    assert report.modules[NAME].energy >= energy - 1e-5
    error = (after[NAME].delta() - before.delta()).norm() ** 2 / before.delta().norm() ** 2
    assert error.item() == pytest.approx(1 - report.modules[NAME].energy, abs=1e-4)
    if after[NAME].rank > 1:
        _, less = resize({NAME: before}, rank=after[NAME].rank - 1)
        assert less.modules[NAME].energy < energy
    assert tuple(after[NAME].down.shape[2:]) == kernel


def test_a_rank_that_is_there_already_changes_nothing(tmp_path: Path) -> None:
    adapter = read_adapter(write_lora(tmp_path / "x.safetensors", dim=4, alpha=2.0))
    factors, report = resize(adapter.factors, rank=8)
    assert report.energy == 1
    assert compare_deltas(adapter.factors, factors, "x").max_relative_error == 0
    assert factors[NAME].alpha == 2.0


def test_modules_of_zeros_stay_zeros() -> None:
    import torch

    dead = Factors(torch.ones(4, 8), torch.zeros(8, 4), 2.0)
    after, report = resize({NAME: dead}, rank=2)
    assert (after[NAME].rank, after[NAME].scale) == (2, 0.5)
    assert not after[NAME].delta().any()
    assert report.energy == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_file_says_what_became_of_it(dtype: str, tmp_path: Path) -> None:
    told = {"ss_network_dim": "4", "ss_network_alpha": "2.0", "modelspec.title": "x"}
    adapter = read_adapter(write_lora(tmp_path / "x.safetensors", dtype=dtype, metadata=told))
    factors, report = resize(adapter.factors, rank=2)
    write_resized(adapter, factors, report, tmp_path / "y.safetensors")
    written = read_adapter(tmp_path / "y.safetensors")
    assert (written.ranks, written.layouts, written.dtypes) == ([2], ("kohya",), adapter.dtypes)
    metadata = read_metadata(tmp_path / "y.safetensors")
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("2", "2.0")
    assert metadata["modelspec.title"] == "x"
    assert metadata["brushset.resize"].startswith("energy 0.")
    rounding = 1e-6 if dtype == "float32" else 4e-3
    assert compare_deltas(factors, written.factors, "x").max_relative_error <= rounding
    dynamic, kept = resize(adapter.factors, energy=0.6)
    write_resized(adapter, dynamic, kept, tmp_path / "z.safetensors")
    assert read_metadata(tmp_path / "z.safetensors")["ss_network_dim"] == "Dynamic"


@pytest.mark.parametrize("wanted", [{}, {"rank": 1, "energy": 0.5}, {"rank": 0}, {"energy": 0.0}, {"energy": 1.1}])
def test_numbers_that_make_no_sense_are_refused(wanted: Any, tmp_path: Path) -> None:
    adapter = read_adapter(save(lora_state(), tmp_path / "x.safetensors"))
    with pytest.raises(UsageError, match=r"--rank|--energy"):
        resize(adapter.factors, **wanted)
