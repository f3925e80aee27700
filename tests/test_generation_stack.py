"""Adapters beside one another in the models, against PEFT, against weights added by hand, and against nothing at all."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from lora_files import locon_state, save, write_trio

from brushset.generation.mixes import Strengths
from brushset.lora.adapter import read_adapter
from brushset.lora.keys import key_table
from brushset.lora.merge.weights import Weight, parse_weight
from brushset.records import BaseFile

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("loras")
    return {**write_trio(folder), "locon": save(locon_state(seed=4), folder / "locon.safetensors")}


@pytest.fixture
def models(tiny_base: BaseFile, files: dict[str, Path]) -> Iterator[tuple[Any, Any]]:
    """The stacks of UNet and text encoder, all four adapters added."""
    from brushset.bases.load import load_components
    from brushset.generation.stack import LoraStack

    parts = load_components(tiny_base, parts=("unet", "text_encoder"))
    stacks = LoraStack(parts.unet, "unet"), LoraStack(parts.text_encoder, "text_encoder")
    for name, path in files.items():
        for stack in stacks:
            stack.add(name, stack.fit(read_adapter(path).factors, path, "tiny"))
    yield stacks
    for stack in stacks:
        stack.take_out()


def ask_unet(unet: Any, rows: int) -> Any:
    import torch

    generator = torch.Generator().manual_seed(0)
    noisy, text = torch.randn(rows, 4, 8, 8, generator=generator), torch.randn(rows, 77, 32, generator=generator)
    with torch.no_grad():
        return unet(noisy, 500, encoder_hidden_states=text).sample


def ask_text(text_encoder: Any, rows: int) -> Any:
    import torch

    tokens = torch.arange(77 * rows).view(rows, 77)
    with torch.no_grad():
        return text_encoder(tokens).last_hidden_state


ASKED = (ask_unet, ask_text)


def mix_of(*entries: tuple[str, float | str]) -> tuple[tuple[str, Weight], ...]:
    return tuple((name, parse_weight(str(weight), "test")) for name, weight in entries)


def difference(found: Any, expected: Any) -> float:
    return float((found - expected).norm() / expected.norm())


def digest(model: Any) -> str:
    hashed = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        hashed.update(name.encode() + tensor.numpy().tobytes())
    return hashed.hexdigest()


MIXES: Sequence[tuple[tuple[str, float | str], ...]] = (
    (("anime", 1.0),),
    (("anime", 0.6), ("watercolor", 0.4)),
    (("watercolor", -0.5), ("unet-only", 0.8)),
)


@pytest.mark.parametrize("mix", MIXES)
def test_a_mix_is_what_peft_makes_of_it(
    mix: tuple[tuple[str, float], ...], models: tuple[Any, Any], tiny_base: BaseFile, files: dict[str, Path]
) -> None:
    from brushset.bases.load import load_pipeline
    from brushset.lora.forms import to_diffusers

    oracle = load_pipeline(tiny_base)
    plain = [ask(model, 2) for ask, model in zip(ASKED, (oracle.unet, oracle.text_encoder), strict=True)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
        for name, _ in mix:
            oracle.load_lora_weights(to_diffusers(read_adapter(files[name]).factors), adapter_name=name)
    oracle.set_adapters([name for name, _ in mix], adapter_weights=[weight for _, weight in mix])
    for stack, ask, model, base in zip(models, ASKED, (oracle.unet, oracle.text_encoder), plain, strict=True):
        stack.put_in([mix_of(*mix)] * 2)
        expected = ask(model, 2)
        assert difference(ask(stack.model, 2), expected) <= TOLERANCE
        assert difference(expected, base) > 1e-2


@pytest.mark.parametrize("names", [("anime",), ("anime", "locon", "watercolor")])
def test_weights_by_block_act_on_their_blocks_in_linear_layers_and_convolutions(
    names: tuple[str, ...], models: tuple[Any, Any], files: dict[str, Path], tiny_base: BaseFile
) -> None:
    from brushset.bases.load import load_components

    mix = mix_of(*((name, f"{0.3 * index + 0.2},text=0.5,up=0.8,down1=0,mid=-0.4") for index, name in enumerate(names)))
    by_hand = load_components(tiny_base, parts=("unet", "text_encoder"))
    for name, weight in mix:
        for kohya, factor in read_adapter(files[name]).factors.items():
            module = key_table()[kohya]
            layer = getattr(by_hand, module.component).get_submodule(module.path)
            layer.weight.data += weight.of(kohya) * factor.delta().view_as(layer.weight)
    for stack, ask, model in zip(models, ASKED, (by_hand.unet, by_hand.text_encoder), strict=True):
        stack.put_in([mix] * 2)
        assert difference(ask(stack.model, 2), ask(model, 2)) <= TOLERANCE


def test_every_row_has_its_own_mix(models: tuple[Any, Any]) -> None:
    rows = [
        mix_of(("anime", 1.0)), (), mix_of(("watercolor", 0.4), ("anime", 0.6)), mix_of(("locon", 0.5)),
        mix_of(("anime", "0,up=1")),
    ]  # fmt: skip
    for stack, ask in zip(models, ASKED, strict=True):
        stack.put_in(rows)
        together = ask(stack.model, len(rows))
        for index, mix in enumerate(rows):
            stack.put_in([mix] * len(rows))
            assert difference(together[index], ask(stack.model, len(rows))[index]) <= TOLERANCE, index
        assert difference(together[0], together[2]) > 1e-2


def test_the_base_is_bit_equal_afterwards_in_weights_and_outputs(models: tuple[Any, Any]) -> None:
    for stack, ask in zip(models, ASKED, strict=True):
        before, alone = digest(stack.model), ask(stack.model, 2)
        names = set(stack.model.state_dict())
        for mix in MIXES:
            stack.put_in([mix_of(*mix), ()])
            assert difference(ask(stack.model, 2)[:1], alone[:1]) > 1e-3
        assert digest(stack.model) == before
        stack.take_out()
        assert stack.hooked == 0
        assert set(stack.model.state_dict()) == names
        assert (ask(stack.model, 2) == alone).all()


def test_modules_without_any_weight_are_not_hooked(models: tuple[Any, Any]) -> None:
    unet, text = models
    unet.put_in([(), ()])
    assert unet.hooked == 0
    unet.put_in([mix_of(("anime", "0,up3=1"))])
    assert unet.hooked == 36  # three attention blocks of twelve modules
    unet.put_in([mix_of(("anime", 1.0))])
    assert unet.hooked == 192
    text.put_in([mix_of(("unet-only", 1.0))])
    assert text.hooked == 0
    text.put_in([mix_of(("anime", "1,text=0"))])
    assert text.hooked == 0


def test_the_order_of_names_changes_no_bit(models: tuple[Any, Any]) -> None:
    unet, _ = models
    unet.put_in([mix_of(("anime", 0.6), ("watercolor", 0.4))] * 2)
    one = ask_unet(unet.model, 2)
    unet.put_in([mix_of(("watercolor", 0.4), ("anime", 0.6))] * 2)
    assert (ask_unet(unet.model, 2) == one).all()


def test_strength_is_the_norm_of_the_sum_over_the_largest(models: tuple[Any, Any], files: dict[str, Path]) -> None:
    strengths = Strengths([stack.adapters for stack in models])
    assert strengths.relative(mix_of(("anime", 0.6))) == pytest.approx(0.6)
    read = {name: read_adapter(files[name]).factors for name in ("anime", "watercolor")}
    squares = {name: sum(float(each.delta().square().sum()) for each in read[name].values()) for name in read}
    total = sum(
        float((0.6 * read["anime"][name].delta() + 0.4 * read["watercolor"][name].delta()).square().sum())
        for name in read["anime"]
    )
    found = strengths.relative(mix_of(("anime", 0.6), ("watercolor", 0.4)))
    assert found == pytest.approx((total / max(squares.values())) ** 0.5, rel=1e-5)


def test_values_that_the_bases_dtype_does_not_hold_are_refused(tmp_path: Path, tiny_base: BaseFile) -> None:
    import torch
    from lora_files import lora_state

    from brushset.bases.load import load_components
    from brushset.errors import VerificationFailed
    from brushset.generation.stack import LoraStack

    state = lora_state()
    key = "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight"
    path = save({**state, key: state[key] + 1e6}, tmp_path / "large.safetensors")
    stack = LoraStack(load_components(tiny_base, dtype=torch.float16, parts=("unet",)).unet, "unet")
    with pytest.raises(VerificationFailed, match=r"1 modules do not fit into torch.float16"):
        stack.fit(read_adapter(path).factors, path, "tiny")
