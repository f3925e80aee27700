"""Planted conflicts are found, from the factors alone, and the numbers are those of the whole ΔW."""

from __future__ import annotations

import math
from typing import Any

import pytest

from brushset.lora.adapter import Factors
from brushset.lora.conflict import ALL, Conflicts, find_conflicts

MID, TEXT = "lora_unet_mid_block_attentions_0_proj_in", "lora_te_text_model_encoder_layers_3_mlp_fc1"
CONV = "lora_unet_down_blocks_0_resnets_0_conv1"
WIDTH = 96


def factor(seed: int, *, rank: int = 4, alpha: float = 4.0, kernel: tuple[int, ...] = ()) -> Factors:
    import torch

    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, WIDTH, *kernel, generator=generator)
    return Factors(down, torch.randn(WIDTH, rank, *([1] * len(kernel)), generator=generator), alpha)


def adapter(seed: int, **recipe: Any) -> dict[str, Factors]:
    return {
        MID: factor(seed, **recipe),
        TEXT: factor(seed + 50, **recipe),
        CONV: factor(seed + 90, kernel=(3, 3), **recipe),
    }


def scaled(factors: dict[str, Factors], by: float) -> dict[str, Factors]:
    return {name: Factors(each.down, by * each.up, each.alpha) for name, each in factors.items()}


def only(conflicts: Conflicts) -> Any:
    assert len(conflicts.pairs) == 1
    return conflicts.pairs[0].whole


def test_numbers_are_those_of_the_whole_delta() -> None:
    import torch

    first = {MID: factor(1, rank=5, alpha=3.0), CONV: factor(2, kernel=(3, 3)), TEXT: factor(3)}
    second = {MID: factor(4, rank=3, alpha=9.0), CONV: factor(5, kernel=(3, 3))}
    conflicts = find_conflicts({"a": first, "b": second})
    one = {name: each.delta().double() for name, each in first.items()}
    other = {name: each.delta().double() for name, each in second.items()}
    product = sum((one[name] * other[name]).sum() for name in other)
    norms = [math.sqrt(sum(each.square().sum().item() for each in side.values())) for side in (one, other)]
    whole = only(conflicts)
    assert whole.cosine == pytest.approx((product / norms[0] / norms[1]).item(), abs=1e-9)
    assert whole.norms == pytest.approx(norms, rel=1e-6)
    assert whole.ratio == pytest.approx(norms[0] / norms[1], rel=1e-6)
    left, right = torch.linalg.svd(one[MID])[0][:, :5], torch.linalg.svd(other[MID])[0][:, :3]
    angles = torch.linalg.svdvals(left.T @ right)
    mid = conflicts.pairs[0].blocks["mid"]
    assert mid.output_overlap == pytest.approx(angles.square().mean().item() - 5 / WIDTH, abs=1e-6)
    reads = torch.linalg.svd(one[MID])[2][:5], torch.linalg.svd(other[MID])[2][:3]
    angles = torch.linalg.svdvals(reads[0] @ reads[1].T)
    assert mid.input_overlap == pytest.approx(angles.square().mean().item() - 5 / WIDTH, abs=1e-6)
    held = left @ left.T @ other[MID] @ reads[0].T @ reads[0]
    assert mid.second_in_first == pytest.approx((held.norm() / other[MID].norm()).item() ** 2, abs=1e-6)
    held = right @ right.T @ one[MID] @ reads[1].T @ reads[1]
    assert mid.first_in_second == pytest.approx((held.norm() / one[MID].norm()).item() ** 2, abs=1e-6)


def test_the_same_update_is_recognised_whatever_its_strength() -> None:
    conflicts = find_conflicts({"a": adapter(1), "b": scaled(adapter(1), 3.0)})
    whole = only(conflicts)
    assert whole.cosine == pytest.approx(1)
    assert whole.output_overlap == pytest.approx(1 - 4 / WIDTH)
    assert (whole.first_in_second, whole.second_in_first) == pytest.approx((1, 1))
    assert whole.ratio == pytest.approx(1 / 3)
    assert len(conflicts.warnings()) == 1
    assert "a and b are the same update but for strength" in conflicts.warnings()[0]


def test_opposite_updates_are_recognised() -> None:
    conflicts = find_conflicts({"a": adapter(1), "b": scaled(adapter(1), -1.0)})
    assert only(conflicts).cosine == pytest.approx(-1)
    assert "undo each other" in conflicts.warnings()[0]


def test_partly_alike_and_partly_opposite_are_named_by_their_block() -> None:
    second = adapter(20)
    second[TEXT] = Factors(factor(51).down, -factor(51).up, 4.0)
    conflicts = find_conflicts({"a": adapter(1), "b": second})
    blocks = conflicts.pairs[0].blocks
    assert blocks["text 3"].cosine == pytest.approx(-1)
    assert abs(blocks["mid"].cosine) < 0.2
    assert any("in text 3 (cosine -1.00) they meet" in line for line in conflicts.warnings())
    whole = find_conflicts({"a": {TEXT: factor(51), MID: factor(1)}, "b": {TEXT: second[TEXT], MID: second[MID]}})
    assert any("pull against each other" in line for line in whole.warnings())
    second = adapter(20)
    second[MID] = Factors(0.1 * factor(1).down, factor(1).up, 4.0)
    lines = find_conflicts({"a": adapter(1), "b": second}).warnings()
    assert any("in mid (cosine 1.00) they meet" in line for line in lines)


def test_disjoint_subspaces_have_no_overlap() -> None:
    import torch

    first, second = adapter(1), adapter(20)
    for name in first:
        left = torch.linalg.qr(torch.cat([first[name].up.flatten(1), second[name].up.flatten(1)], dim=1)).Q
        shape = first[name].up.shape
        first[name] = Factors(first[name].down, left[:, :4].reshape(shape), 4.0)
        second[name] = Factors(second[name].down, left[:, 4:].reshape(shape), 4.0)
    conflicts = find_conflicts({"a": first, "b": second})
    whole = only(conflicts)
    assert whole.cosine == pytest.approx(0, abs=1e-7)
    assert whole.output_overlap == pytest.approx(-4 / WIDTH, abs=1e-6)
    assert whole.second_in_first == pytest.approx(0, abs=1e-9)
    assert conflicts.warnings() == []


def test_independent_updates_are_at_chance_and_said_nothing_about() -> None:
    conflicts = find_conflicts({str(seed): adapter(100 * seed) for seed in range(1, 4)})
    assert len(conflicts.pairs) == 3
    for pair in conflicts.pairs:
        assert abs(pair.whole.cosine) < 0.05
        assert abs(pair.whole.output_overlap) < 0.05
        assert abs(pair.whole.input_overlap) < 0.05
    assert conflicts.warnings() == []


def test_one_seed_is_told_from_conflict() -> None:
    second = {name: Factors(adapter(1)[name].down, adapter(20)[name].up, 4.0) for name in adapter(1)}
    conflicts = find_conflicts({"a": adapter(1), "b": second})
    assert only(conflicts).input_overlap > 0.9
    assert "a sign of one training seed" in conflicts.warnings()[0]


def test_one_seed_is_told_where_chance_leaves_little_room() -> None:
    """A rank of two thirds of the width overlaps by as much whatever it is: at most a third is left above chance."""
    first, other = adapter(1, rank=64), adapter(20, rank=64)
    second = {name: Factors(first[name].down, other[name].up[:, :64], 4.0) for name in (MID, TEXT)}
    conflicts = find_conflicts({"a": {MID: first[MID], TEXT: first[TEXT]}, "b": second})
    assert only(conflicts).input_room == pytest.approx(1 / 3)
    assert only(conflicts).input_overlap == pytest.approx(1 / 3)
    assert "above chance of at most 0.33" in conflicts.warnings()[0]
    unlike = find_conflicts({"a": {MID: first[MID]}, "b": {MID: other[MID]}})
    assert not any("seed" in line for line in unlike.warnings())


def test_crowded_outputs_are_named() -> None:
    second = {name: Factors(adapter(20)[name].down, adapter(1)[name].up, 4.0) for name in adapter(1)}
    assert "write into the same directions" in find_conflicts({"a": adapter(1), "b": second}).warnings()[0]


def test_imbalance_proposes_weights_that_level_it() -> None:
    adapters = {"a": adapter(1), "b": scaled(adapter(20), 0.25), "c": adapter(40)}
    conflicts = find_conflicts(adapters)
    for block in conflicts.weights["a"]:
        shares = [conflicts.weights[name][block] for name in adapters]
        assert sum(shares) == pytest.approx(1)
        levelled = [conflicts.weights[name][block] * conflicts.norms[name][block] for name in adapters]
        assert levelled == pytest.approx([levelled[0]] * 3)
    assert any("a is" in line and "times as strong as b" in line for line in conflicts.warnings())
    assert not any("a is" in line and "strong as c" in line for line in conflicts.warnings())


def test_an_adapter_of_zeros_is_named_and_gets_no_weight() -> None:
    conflicts = find_conflicts({"a": adapter(1), "b": scaled(adapter(20), 0.0)})
    whole = only(conflicts)
    assert (whole.cosine, whole.output_overlap, whole.ratio) == (0, 0, math.inf)
    assert conflicts.warnings() == ["b does nothing: all its ΔW are 0"]
    assert (conflicts.weights["a"][ALL], conflicts.weights["b"][ALL]) == (1, 0)
    flipped = find_conflicts({"b": scaled(adapter(20), 0.0), "a": adapter(1)})
    assert flipped.warnings() == ["b does nothing: all its ΔW are 0"]


def test_unet_and_text_encoder_are_told_apart() -> None:
    second = {**adapter(20), TEXT: factor(51)}
    blocks = find_conflicts({"a": adapter(1), "b": second}).pairs[0].blocks
    assert list(blocks) == ["all", "unet", "text", "text 3", "down 0", "mid"]
    assert blocks["text"] == blocks["text 3"]
    assert blocks["text"].cosine == pytest.approx(1)
    assert abs(blocks["unet"].cosine) < 0.05
    assert blocks["all"].norms[0] ** 2 == pytest.approx(blocks["unet"].norms[0] ** 2 + blocks["text"].norms[0] ** 2)


def test_a_component_that_one_lacks_counts_as_zeros() -> None:
    lacking = adapter(20)
    del lacking[TEXT]
    conflicts = find_conflicts({"a": adapter(1), "b": lacking})
    assert conflicts.norms["b"]["text 3"] == 0
    assert conflicts.pairs[0].blocks["text 3"].cosine == 0
    assert conflicts.weights["a"]["text 3"] == 1
