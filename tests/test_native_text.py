"""Tokens in chunks, and the states that the UNet is fed."""

from __future__ import annotations

import pytest
import torch

from brushset.bases.load import Components, load_components
from brushset.native.text import TextSource, encode_tokens, tokenize_in_chunks
from brushset.records import BaseFile

LONG = ", ".join(f"word number {n}" for n in range(60))


@pytest.fixture(scope="module")
def models(tiny_base: BaseFile) -> Components:
    return load_components(tiny_base, parts=("text_encoder", "tokenizer"))


def test_a_short_text_is_one_window(models: Components) -> None:
    ids = tokenize_in_chunks(models.tokenizer, "a cat", 77)
    assert ids.shape == (1, 77)
    assert ids[0, 0] == models.tokenizer.bos_token_id
    assert ids[0, 3] == ids[0, -1] == models.tokenizer.eos_token_id


@pytest.mark.parametrize(("length", "chunks"), [(150, 2), (225, 3)])
def test_a_long_text_is_cut_into_chunks_between_marks(models: Components, length: int, chunks: int) -> None:
    ids = tokenize_in_chunks(models.tokenizer, LONG, length + 2)
    assert ids.shape == (chunks, 77)
    assert (ids[:, 0] == models.tokenizer.bos_token_id).all()
    assert (ids[:, -1] == models.tokenizer.eos_token_id).all()
    whole = models.tokenizer(LONG, truncation=True, max_length=length + 2, padding="max_length").input_ids
    assert ids[:, 1:-1].flatten().tolist() == whole[1:-1]


def test_states_of_chunks_are_joined_under_one_pair_of_marks(models: Components) -> None:
    text = TextSource(models.tokenizer, models.text_encoder, max_token_length=150)
    with torch.no_grad():
        states = text.encode([(LONG, 1), ("", 1)])
        apart = models.text_encoder(text.tokens(LONG))[0]
    assert states.shape == (2, 152, 32)
    assert torch.allclose(states[0, :76], apart[0, :76], atol=1e-5)
    assert torch.allclose(states[0, 76:151], apart[1, 1:76], atol=1e-5)
    assert torch.allclose(states[0, 151], apart[1, 76], atol=1e-5)


def test_clip_skip_1_is_the_encoders_own_output_and_2_is_not(models: Components) -> None:
    tokens = tokenize_in_chunks(models.tokenizer, "a cat", 77).unsqueeze(0)
    with torch.no_grad():
        first, second = (encode_tokens(models.text_encoder, tokens, [skip]) for skip in (1, 2))
        layers = models.text_encoder(tokens[0], output_hidden_states=True).hidden_states
    assert torch.equal(first, models.text_encoder(tokens[0])[0])
    assert torch.allclose(first, models.text_encoder.text_model.final_layer_norm(layers[-1]), atol=1e-6)
    assert torch.allclose(second, models.text_encoder.text_model.final_layer_norm(layers[-2]), atol=1e-6)
    assert not torch.allclose(first, second, atol=1e-2)


def test_samples_of_several_clip_skips_are_encoded_at_once(models: Components) -> None:
    tokens = torch.stack([tokenize_in_chunks(models.tokenizer, text, 152) for text in (LONG, "a dog", "a cat", "")])
    skips = [2, 1, 12, 2]
    with torch.no_grad():
        found = encode_tokens(models.text_encoder, tokens, [1, 2, 12], torch.tensor(skips))
        for each, text, skip in zip(found, tokens, skips, strict=True):
            assert torch.allclose(each, encode_tokens(models.text_encoder, text.unsqueeze(0), [skip])[0], atol=1e-6)


def test_remembered_states_equal_live_ones(models: Components) -> None:
    live = TextSource(models.tokenizer, models.text_encoder, max_token_length=75)
    kept = TextSource(models.tokenizer, models.text_encoder, max_token_length=None)
    kept.remember([("a cat", 1), ("", 1), ("a dog", 1)])
    asked = [("a dog", 1), ("", 1)]
    with torch.no_grad():
        assert torch.allclose(kept.encode(asked), live.encode(asked), atol=1e-6)


def test_a_caption_is_kept_once_for_each_clip_skip_that_it_is_seen_with(models: Components) -> None:
    text = TextSource(models.tokenizer, models.text_encoder, max_token_length=None, clip_skips=[2, 1, 1])
    text.remember([("a cat", 1), ("a cat", 2), ("", 2), ("a cat", 2)])
    assert [text.prepare(["a cat"], skip).is_cached for skip in (1, 2)] == [True, True]
    assert not text.prepare([""], 1).is_cached
    assert not text.prepare(["a cat", "a dog"], 2).is_cached
    with torch.no_grad():
        first, second, live = text.encode([("a cat", 1), ("a cat", 2), ("", 1)])
        for found, (caption, skip) in zip((first, second, live), (("a cat", 1), ("a cat", 2), ("", 1)), strict=True):
            alone = encode_tokens(models.text_encoder, text.tokens(caption).unsqueeze(0), [skip])[0]
            assert torch.allclose(found, alone, atol=1e-6)
    assert not torch.allclose(first, second, atol=1e-2)


def test_the_shortened_activation_is_clips_own_with_its_gradient() -> None:
    from transformers.activations import QuickGELUActivation

    from brushset.native.blocks import QuickGelu

    x = torch.linspace(-30, 30, 4001, dtype=torch.float64)
    found = []
    for activation in (QuickGELUActivation(), QuickGelu()):
        given = x.clone().requires_grad_()
        made = activation(given)
        made.backward(torch.cos(x))
        found.append((made.detach(), given.grad))
    for ours, theirs in zip(*found, strict=True):
        assert ours is not None
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-14)
