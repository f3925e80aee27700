"""Captions that vary, with an encoder that is not trained: what is encoded beforehand, and what as it comes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_native_packed import make_styles

from brushset.bases.load import load_components
from brushset.native.dataset import Batch, epoch_batches
from brushset.native.loop import run_together
from brushset.native.session import Session, open_pack
from brushset.records import BaseFile

FEW = ({"shuffle_caption": True, "keep_tokens": 1, "caption_dropout_rate": 0.2}, {"seed": 1, "max_train_epochs": 40})
MANY = ({"shuffle_caption": True, "keep_tokens": 0}, {"seed": 2, "max_train_epochs": 2})
STILL: tuple[dict[str, Any], dict[str, Any]] = ({}, {"seed": 3, "max_train_epochs": 2})


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory, tiny_base: BaseFile) -> list[Session]:
    root = tmp_path_factory.mktemp("styles")
    styles = make_styles(root, tiny_base, [(dict(keys), {**training, "network_train_unet_only": True})
                                           for keys, training in (FEW, MANY, STILL)])  # fmt: skip
    for image in (root / "0" / "images").glob("*.txt"):
        image.write_text("x, red, blue, green")
    return open_pack(styles, load_components(tiny_base, parts=("unet", "text_encoder", "tokenizer")))


def test_few_wordings_are_cached_and_many_are_not(sessions: list[Session]) -> None:
    assert [session.live_text for session in sessions] == [False, True, False]


def draws(sessions: list[Session]) -> dict[int, Any]:
    made = {}
    for session in sessions:
        batches = epoch_batches(session.images, session.settings.dataset, seed=1, epoch=1)
        made[session.row] = session.draw(next(batch for batch in batches if len(batch.images) == 2), 0)
    return made


def test_only_the_styles_whose_words_vary_are_encoded_as_they_come(sessions: list[Session]) -> None:
    seen: list[int] = []
    hook = sessions[0].text._encoder.register_forward_hook(lambda _module, given, _made: seen.append(len(given[0])))
    made = draws(sessions)
    assert [made[row].text.numbers.dim() for row in (0, 1, 2)] == [1, 3, 1]
    sessions[0].pack.add_gradients(made)
    sessions[0].pack.add_gradients({0: made[0], 2: made[2]})
    hook.remove()
    assert seen == [2]  # the second style's two samples, once


def test_cached_and_live_styles_in_one_pass_have_each_their_states(sessions: list[Session]) -> None:
    pack, made = sessions[0].pack, draws(sessions)
    with torch.no_grad():
        joined = pack.text.states(pack._upload(made))
        for row, session in enumerate(sessions):
            batches = epoch_batches(session.images, session.settings.dataset, seed=1, epoch=1)
            captions = session.captions(next(batch for batch in batches if len(batch.images) == 2), 0)
            expected = [pack.text._encoder(pack.text.tokens(caption))[0][0] for caption in captions]
            assert torch.allclose(joined[2 * row : 2 * row + 2], torch.stack(expected), atol=1e-5)
    assert not torch.allclose(joined[0], joined[2], atol=1e-2)


def test_what_was_foreseen_is_what_the_run_draws(sessions: list[Session]) -> None:
    seen: set[str] = set()
    first = sessions[0]
    foreseen = first.foresee_captions()
    draw = first.captions

    def captions(batch: Batch, number: int) -> list[str]:
        found = draw(batch, number)
        seen.update(found)
        return found

    first.captions = captions  # type: ignore[method-assign]
    first.length = replace(first.length, epochs=3, steps=3 * first.length.steps_per_epoch)
    list(run_together([first]))
    assert foreseen is not None
    assert "" in foreseen
    assert len(foreseen) > 3
    assert len(seen) > 2
    assert seen <= foreseen
