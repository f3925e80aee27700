"""Each merge method is its paper's formula: held against dense definitions written here, on their own."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brushset.errors import UsageError
from brushset.lora.adapter import Factors
from brushset.lora.lowrank import Thin, distance, inner, thin, to_factors, truncate, truncate_dense
from brushset.lora.merge.dare import drop_and_sum
from brushset.lora.merge.method import Merged, Term, Wanted
from brushset.lora.merge.mix import METHODS
from brushset.lora.merge.ties import elect, smallest_kept
from brushset.lora.merge.weights import Weight, normalised, parse_weight

OUT, IN = 24, 18
KERNELS: list[tuple[int, ...]] = [(), (1, 1), (3, 3)]


def factor(rank: int, alpha: float, seed: int, kernel: tuple[int, ...] = ()) -> Factors:
    import torch

    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, IN, *kernel, generator=generator)
    return Factors(down, torch.randn(OUT, rank, *([1] * len(kernel)), generator=generator), alpha)


def dense(factor: Factors) -> Any:
    """alpha/rank · up · down as sd-scripts merges it: einsum over the rank, kernels and all, [out, in·k]."""
    import numpy as np
    import torch

    whole = np.einsum("or...,ri...->oi...", factor.up.double().numpy(), factor.down.double().numpy())
    return torch.from_numpy(factor.alpha / factor.rank * whole).flatten(1)


def terms(*parts: tuple[float, Factors]) -> list[Term]:
    return [Term(f"m:{index}", weight, thin(each)) for index, (weight, each) in enumerate(parts)]


def merged(method: str, parts: list[Term], **wanted: Any) -> Merged:
    return METHODS[method].merge(parts, Wanted(**wanted))


EXACT, FLOAT32 = 1e-12, 1e-6  # of ΔW: what goes by entries is done in float32


def whole(update: Thin) -> Any:
    """ΔW in float64, where `dense` is for float32."""
    return update.left @ update.right


def close(ours: Any, theirs: Any, share: float = EXACT) -> bool:
    return bool((ours.double() - theirs.double()).norm() <= share * max(theirs.norm(), 1e-300))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("method", ["concat", "weighted"])
def test_the_exact_methods_are_the_weighted_sum(method: str, kernel: tuple[int, ...]) -> None:
    one, other = factor(4, 2.0, 1, kernel), factor(3, 5.0, 2, kernel)
    result = merged(method, terms((0.6, one), (-0.4, other)))
    assert close(whole(result.update), 0.6 * dense(one) - 0.4 * dense(other))
    assert result.update.rank == 7
    assert result.energy == pytest.approx(1)
    back = to_factors(result.update, one, one.up.dtype)
    assert back.down.shape[1:] == one.down.shape[1:]
    assert back.up.shape[2:] == one.up.shape[2:]
    assert (back.scale, back.alpha) == (1.0, 7.0)
    assert close(dense(back), 0.6 * dense(one) - 0.4 * dense(other), 1e-6)


def test_concat_keeps_every_down_bit_by_bit() -> None:
    import torch

    one, other = factor(4, 2.0, 1), factor(3, 5.0, 2)
    result = merged("concat", terms((0.6, one), (0.4, other)))
    assert torch.equal(result.update.right.float(), torch.cat([one.down, other.down]))


def test_weighted_drops_directions_that_are_shared() -> None:
    one = factor(4, 2.0, 1)
    twice = Factors(2 * one.down, one.up, 8.0)
    result = merged("weighted", terms((0.5, one), (0.5, twice)))
    assert result.update.rank == 4
    assert close(whole(result.update), 0.5 * dense(one) + 0.5 * dense(twice))
    assert merged("concat", terms((0.5, one), (0.5, twice))).update.rank == 8


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("rank", [1, 3, 6])
def test_svd_is_the_truncated_svd_of_the_sum(rank: int, kernel: tuple[int, ...]) -> None:
    import torch

    one, other = factor(4, 2.0, 1, kernel), factor(3, 5.0, 2, kernel)
    result = merged("svd", terms((0.6, one), (0.4, other)), rank=rank)
    left, core, right = torch.linalg.svd(0.6 * dense(one) + 0.4 * dense(other), full_matrices=False)
    assert result.update.rank == rank
    assert close(whole(result.update), (left[:, :rank] * core[:rank]) @ right[:rank], 1e-10)
    assert result.energy == pytest.approx((core[:rank].square().sum() / core.square().sum()).item())


def test_svd_defaults_to_the_largest_rank_that_goes_in() -> None:
    assert merged("svd", terms((1.0, factor(4, 2.0, 1)), (1.0, factor(3, 5.0, 2)))).update.rank == 4


def ties_by_hand(parts: list[tuple[float, Any]], density: float) -> Any:
    """The paper's algorithm 1, entry by entry, in plain Python."""
    import torch

    trimmed = []
    for weight, update in parts:
        values = [math.copysign(1, weight) * value for value in update.flatten().tolist()]
        order = sorted(range(len(values)), key=lambda index: -abs(values[index]))
        kept = set(order[: max(1, round(density * len(values)))])
        trimmed.append([value if index in kept else 0.0 for index, value in enumerate(values)])
    weights = [abs(weight) for weight, _ in parts]
    out = []
    for entries in zip(*trimmed, strict=True):
        mass = sum(weight * value for weight, value in zip(weights, entries, strict=True))
        sign = (mass > 0) - (mass < 0)
        agree = [(weight, value) for weight, value in zip(weights, entries, strict=True) if value * sign > 0]
        share = sum(weight for weight, _ in agree)
        out.append(sum(weights) * sum(weight * value for weight, value in agree) / share if share else 0.0)
    return torch.tensor(out, dtype=torch.float64).reshape(parts[0][1].shape)


@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.6, 0.4), (0.6, -0.4)])
def test_ties_is_the_papers_algorithm(density: float, weights: tuple[float, float]) -> None:
    factors = [factor(4, 2.0, 1), factor(3, 5.0, 2)]
    by_hand = ties_by_hand([(weight, dense(each)) for weight, each in zip(weights, factors, strict=True)], density)
    ours = elect(terms(*zip(weights, factors, strict=True)), density)
    assert close(ours, by_hand, FLOAT32)
    uncut = merged("ties", terms(*zip(weights, factors, strict=True)), density=density, rank=IN)
    assert close(whole(uncut.update), by_hand, FLOAT32)
    cut = merged("ties", terms(*zip(weights, factors, strict=True)), density=density, rank=3)
    left = (whole(cut.update) - by_hand).square().sum() / by_hand.square().sum()
    assert cut.energy == pytest.approx(1 - left.item(), abs=1e-6)


def test_ties_takes_the_mean_of_those_that_agree() -> None:
    import torch

    def update(*values: float) -> Thin:
        return Thin(torch.tensor([[1.0]], dtype=torch.float64), torch.tensor([values], dtype=torch.float64))

    parts = [Term("a", 0.5, update(1.0, 3.0, 0.0)), Term("b", 0.5, update(3.0, -1.0, 2.0))]
    assert elect(parts, 1.0).tolist() == [[2.0, 3.0, 2.0]]
    assert smallest_kept(update(1.0, -3.0, 2.0).dense(), 0.34) == 3.0
    assert elect([Term("a", 1.0, update(1.0, -3.0, 2.0))], 0.34).tolist() == [[0.0, -3.0, 0.0]]


def test_dare_drops_and_rescales_and_is_the_sum_on_average() -> None:
    import torch

    one, other = factor(4, 2.0, 1), factor(3, 5.0, 2)
    parts = terms((0.6, one), (0.4, other))
    single = drop_and_sum(parts[:1], 0.25, seed=3)
    kept = single != 0
    assert torch.allclose(single[kept], (0.6 * dense(one) / 0.25).float()[kept])
    assert 0.15 < kept.double().mean().item() < 0.35
    asked = 0.6 * dense(one) + 0.4 * dense(other)
    mean = sum(drop_and_sum(parts, 0.5, seed) for seed in range(400)) / 400
    assert (mean - asked).norm() < 0.1 * asked.norm()
    assert not torch.equal(drop_and_sum(parts, 0.5, 1), drop_and_sum(parts, 0.5, 2))
    assert torch.equal(drop_and_sum(parts, 0.5, 1), drop_and_sum(parts, 0.5, 1))
    assert close(drop_and_sum(parts, 1.0, 0), asked, FLOAT32)


@given(method=st.sampled_from(sorted(METHODS)), weight=st.floats(0.1, 2), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_one_adapter_alone_is_itself_times_its_weight(method: str, weight: float, seed: int) -> None:
    only = factor(3, 2.0, seed)
    density = {} if METHODS[method].density is None else {"density": 1.0}
    assert close(whole(merged(method, terms((weight, only)), **density).update), weight * dense(only), _share(method))


@given(method=st.sampled_from(sorted(METHODS)), weights=st.tuples(*[st.floats(-1, 1)] * 3), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_the_order_of_the_adapters_does_not_matter(method: str, weights: tuple[float, float, float], seed: int) -> None:
    parts = terms(*((weight or 0.5, factor(2, 2.0, seed + index)) for index, weight in enumerate(weights)))
    there, back = merged(method, parts, **_whole(method)), merged(method, parts[::-1], **_whole(method))
    assert (whole(there.update) - whole(back.update)).norm() <= _share(method) * sum(
        abs(part.weight) * part.update.squared_norm**0.5 for part in parts
    )


def _share(method: str) -> float:
    return 1e-9 if METHODS[method].density is None else FLOAT32


def _whole(method: str) -> dict[str, int]:
    """At full rank: a cut between two equal singular values may fall either way."""
    return {} if METHODS[method].exact else {"rank": IN}


@given(method=st.sampled_from(["concat", "weighted", "dare"]), factor_=st.floats(0.1, 3), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_sums_are_linear_in_the_weights(method: str, factor_: float, seed: int) -> None:
    one, other = factor(3, 2.0, seed), factor(2, 3.0, seed + 1)
    once = merged(method, terms((0.6, one), (0.4, other)), **_whole(method))
    more = merged(method, terms((0.6 * factor_, one), (0.4 * factor_, other)), **_whole(method))
    assert close(whole(more.update), factor_ * whole(once.update), _share(method))


@pytest.mark.parametrize("shape", [(24, 18), (18, 24), (18, 18)])
def test_truncating_a_whole_matrix_is_its_svd(shape: tuple[int, int]) -> None:
    import torch

    random = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, core, right = torch.linalg.svd(random.double(), full_matrices=False)
    held, share = truncate_dense(random, 5)
    assert (held.left.shape, held.right.shape) == ((shape[0], 5), (5, shape[1]))
    assert close(whole(held), (left[:, :5] * core[:5]) @ right[:5], FLOAT32)
    assert share == pytest.approx((core[:5].square().sum() / core.square().sum()).item())


def test_products_and_distances_are_those_of_the_whole() -> None:
    one, other = factor(4, 2.0, 1), factor(3, 5.0, 2)
    assert inner(thin(one), thin(other)) == pytest.approx((dense(one) * dense(other)).sum().item())
    assert distance(thin(one), thin(other)) == pytest.approx((dense(one) - dense(other)).norm().item())
    assert distance(thin(one), thin(one)) < 1e-12


@pytest.mark.parametrize("method", sorted(METHODS))
def test_updates_of_zeros_stay_zeros(method: str) -> None:
    import torch

    dead = Factors(torch.ones(4, IN), torch.zeros(OUT, 4), 2.0)
    result = merged(method, terms((0.6, dead), (0.4, dead)))
    assert not whole(result.update).any()
    assert result.update.left.isfinite().all()
    assert result.update.right.isfinite().all()
    assert truncate(thin(dead), 2)[1] == 1


def test_what_is_said_of_a_block_goes_first() -> None:
    weight = parse_weight("0.6,unet=0.5,text=0.3,up=0.8,up3=0.2,text11=0", "x")
    modules = {
        "lora_unet_mid_block_attentions_0_proj_in": 0.5,
        "lora_unet_up_blocks_2_attentions_0_proj_in": 0.8,
        "lora_unet_up_blocks_3_attentions_0_proj_in": 0.2,
        "lora_te_text_model_encoder_layers_1_mlp_fc1": 0.3,
        "lora_te_text_model_encoder_layers_11_mlp_fc1": 0.0,
    }
    assert {name: weight.of(name) for name in modules} == modules
    assert weight.told() == "0.6,unet=0.5,text=0.3,up=0.8,up3=0.2,text11=0"
    assert [each.told() for each in normalised([weight, Weight(1.4)])] == [
        "0.3,unet=0.25,text=0.15,up=0.4,up3=0.1,text11=0",
        "0.7",
    ]


@pytest.mark.parametrize(
    "text", ["", "half", "nan", "inf", "11", "0.6,up", "0.6,up4=1", "0.6,side=1", "0.6,up=x", "0,6"]
)
def test_a_weight_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="anime"):
        parse_weight(text, f"anime:{text}")


@pytest.mark.parametrize("weights", [(0.0, 0.0), (1.0, -1.0), (-1.0, 0.5)])
def test_weights_that_sum_to_nothing_cannot_be_normalised(weights: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match="--normalize"):
        normalised([Weight(weight) for weight in weights])
