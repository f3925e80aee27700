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
    text = TextSource(models.tokenizer, models.text_encoder, max_token_length=150, clip_skip=None)
    with torch.no_grad():
        states = text.encode([LONG, ""])
        apart = models.text_encoder(text.tokens(LONG))[0]
    assert states.shape == (2, 152, 32)
    assert torch.allclose(states[0, :76], apart[0, :76], atol=1e-5)
    assert torch.allclose(states[0, 76:151], apart[1, 1:76], atol=1e-5)
    assert torch.allclose(states[0, 151], apart[1, 76], atol=1e-5)


def test_clip_skip_1_is_the_encoders_own_output_and_2_is_not(models: Components) -> None:
    tokens = tokenize_in_chunks(models.tokenizer, "a cat", 77).unsqueeze(0)
    with torch.no_grad():
        own, first, second = (encode_tokens(models.text_encoder, tokens, clip_skip=skip) for skip in (None, 1, 2))
        layers = models.text_encoder(tokens[0], output_hidden_states=True).hidden_states
    assert torch.allclose(own, first, atol=1e-6)
    assert torch.allclose(second, models.text_encoder.text_model.final_layer_norm(layers[-2]), atol=1e-6)
    assert not torch.allclose(own, second, atol=1e-2)


def test_remembered_states_equal_live_ones(models: Components) -> None:
    live = TextSource(models.tokenizer, models.text_encoder, max_token_length=75, clip_skip=None)
    kept = TextSource(models.tokenizer, models.text_encoder, max_token_length=None, clip_skip=None)
    kept.remember(["a cat", "", "a dog"])
    with torch.no_grad():
        assert torch.allclose(kept.encode(["a dog", ""]), live.encode(["a dog", ""]), atol=1e-6)
