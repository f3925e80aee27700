"""What two adapters do to each other's noise predictions: the figures are their definitions, and planted cases are told."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from lora_files import write_lora

from brushset.bases.load import Components, load_components
from brushset.errors import UsageError
from brushset.generation.additivity import STEPS, Additivity, AdditivityProbe, ProbeSettings, figures
from brushset.log import silent
from brushset.lora.adapter import AdapterFile, Factors, read_adapter
from brushset.lora.keys import key_table
from brushset.lora.merge.weights import Weight
from brushset.records import BaseFile

ONE, HALF = Weight(1.0), Weight(0.5)
SETTINGS = ProbeSettings(("a cat",), size_px=64)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> AdapterFile:
    return read_adapter(write_lora(tmp_path_factory.mktemp("loras") / "a.safetensors", dim=3, seed=1))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> AdapterFile:
    return read_adapter(write_lora(tmp_path_factory.mktemp("loras") / "b.safetensors", dim=3, seed=2))


@pytest.fixture(scope="module")
def components(tiny_base: BaseFile) -> Components:
    return load_components(tiny_base, parts=("unet", "text_encoder", "tokenizer"))


def scaled(adapter: AdapterFile, by: float) -> AdapterFile:
    factors = {name: Factors(each.down, by * each.up, each.alpha) for name, each in adapter.factors.items()}
    return dataclasses.replace(adapter, factors=factors)


def compared(components: Components, first: AdapterFile, second: AdapterFile, **changes: Any) -> Additivity:
    probe = AdditivityProbe(components, {"a": first, "b": second}, "tiny", silent)
    settings = dataclasses.replace(SETTINGS, **changes)
    return probe.compare(("a", ONE), ("b", ONE), settings)


def test_figures_are_those_of_plain_vectors() -> None:
    import torch

    point = figures("x", 5, torch.tensor([3.0, 0, 0]), torch.tensor([3.0, 4, 0]), torch.tensor([2.0, 1, 2]))
    assert point is not None
    assert point.cosine == pytest.approx(0.6)
    assert point.kept == pytest.approx((6 / 9, 10 / 25))
    assert point.ratio == pytest.approx(0.6)
    assert point.additivity == pytest.approx(
        math.sqrt(4**2 + 3**2 + 2**2) / math.sqrt(52)
    )  # of (−4, −3, 2) and (6, 4, 0)


def test_an_adapter_without_effect_leaves_nothing_to_compare() -> None:
    import torch

    assert figures("x", 5, torch.zeros(3), torch.ones(3), torch.ones(3)) is None
    opposite = figures("x", 5, torch.ones(3), -torch.ones(3), torch.zeros(3))
    assert opposite is not None
    assert opposite.additivity == math.inf
    assert opposite.cosine == pytest.approx(-1)


def test_predictions_are_those_of_merged_models(
    components: Components, adapter: AdapterFile, other: AdapterFile
) -> None:
    import torch

    def model(*adapters: AdapterFile) -> tuple[Any, Any]:
        unet, text = copy.deepcopy(components.unet), copy.deepcopy(components.text_encoder)
        for each in adapters:
            for name, factor in each.factors.items():
                entry = key_table()[name]
                layer = (unet if entry.component == "unet" else text).get_submodule(entry.path)
                layer.weight.add_(0.5 * factor.delta().reshape(layer.weight.shape))
        return unet, text

    ids = components.tokenizer("a cat", padding="max_length", max_length=77, return_tensors="pt").input_ids
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = []
        for adapters in [(), (adapter,), (other,), (adapter, other)]:
            unet, text = model(*adapters)
            found.append(unet(noise, 999, encoder_hidden_states=text(ids)[0]).sample)
    by_hand = figures("a cat", 999, *(each - found[0] for each in found[1:]))
    probe = AdditivityProbe(components, {"a": adapter, "b": other}, "tiny", silent)
    ours = probe.compare(("a", HALF), ("b", HALF), dataclasses.replace(SETTINGS, prompts=("a cat", "a house")))
    first = ours.points[0]
    assert by_hand is not None
    assert dataclasses.astuple(first)[2:4] == pytest.approx(dataclasses.astuple(by_hand)[2:4], rel=1e-3)
    assert first.kept == pytest.approx(by_hand.kept, rel=1e-3)
    assert first.ratio == pytest.approx(by_hand.ratio, rel=1e-3)
    assert [point.timestep for point in ours.points] == 2 * [999, 799, 599, 400, 200]
    assert {point.prompt for point in ours.points} == {"a cat", "a house"}
    assert len(ours.points) == 2 * STEPS


def test_weak_adapters_add_up_and_strong_ones_do_not(
    components: Components, adapter: AdapterFile, other: AdapterFile
) -> None:
    weak = compared(components, scaled(adapter, 0.1), scaled(other, 0.1))
    strong = compared(components, adapter, other)
    least = [min(point.additivity for point in each.points) for each in (weak, strong)]
    assert least[0] < 0.03
    assert least[1] > 5 * least[0]
    assert strong.additivity > weak.additivity


def test_opposite_and_equal_adapters_are_told(components: Components, adapter: AdapterFile) -> None:
    weak = scaled(adapter, 0.1)
    opposite = compared(components, weak, scaled(adapter, -0.1))
    assert opposite.cosine < -0.9
    assert opposite.kept == pytest.approx((0, 0), abs=0.01)
    same = compared(components, weak, scaled(adapter, 0.2))
    assert same.cosine > 0.95
    assert same.kept == pytest.approx((3, 1.5), abs=0.3)
    assert same.ratio == pytest.approx(0.5, abs=0.05)


def test_rows_at_a_time_change_nothing(components: Components, adapter: AdapterFile, other: AdapterFile) -> None:
    whole, single = (compared(components, adapter, other, at_a_time=rows) for rows in (5, 1))
    assert whole.additivity == pytest.approx(single.additivity, rel=1e-4)
    assert whole.cosine == pytest.approx(single.cosine, abs=1e-4)


def test_what_does_not_fit_is_found_out_once(
    components: Components, adapter: AdapterFile, other: AdapterFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    original, told = components.unet.forward, []

    def forward(noisy: Any, *args: Any, **kwargs: Any) -> Any:
        if len(noisy) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return original(noisy, *args, **kwargs)

    monkeypatch.setattr(components.unet, "forward", forward)
    probe = AdditivityProbe(components, {"a": adapter, "b": other}, "tiny", lambda _, **fields: told.append(fields))
    assert len(probe.compare(("a", ONE), ("b", ONE), SETTINGS).points) == STEPS
    assert [each["text"] for each in told] == ["UNet: out of memory with 5 rows at a time; goes on with 2"]


def test_the_base_is_left_as_it_was(components: Components, adapter: AdapterFile, other: AdapterFile) -> None:
    import torch

    before = {name: tensor.clone() for name, tensor in components.unet.state_dict().items()}
    compared(components, adapter, other)
    assert not any(module._forward_hooks for module in components.unet.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in components.unet.state_dict().items())


def test_an_adapter_of_other_widths_is_refused(components: Components, tmp_path: Path) -> None:
    from brushset.bases.configs import SD15

    wide = read_adapter(write_lora(tmp_path / "wide.safetensors", architecture=SD15, dim=1, text_encoder=False))
    with pytest.raises(UsageError, match="does not fit base model tiny"):
        AdditivityProbe(components, {"wide": wide}, "tiny", silent)
