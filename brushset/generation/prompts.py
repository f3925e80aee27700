"""Prompts to embeddings, each once for what the adapters seen with it do to the text encoder.

A prompt with an adapter that leaves the text encoder alone is the base's, encoded once for all such mixes. Different
mixes are encoded in one batch, rows with weights of their own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from brushset.generation.portions import Portions
from brushset.generation.stack import LoraStack
from brushset.lora.compose.view import Mix
from brushset.protocols import Emit

_KEPT = 1024  # embeddings; at SD 1.5's width in float32 0.25 MB each
_AT_A_TIME = 64


@dataclass(frozen=True)
class Wanted:
    """A prompt as it is seen with a mix, from a layer of the text encoder."""

    text: str
    mix: Mix
    clip_skip: int


class PromptEncoder:
    """The text encoder with its adapters. `one_by_one` encodes each prompt by itself, so that bits do not depend on the
    others.
    """

    def __init__(self, model: Any, tokenizer: Any, stack: LoraStack, *, one_by_one: bool, emit: Emit) -> None:
        self._model, self._tokenizer, self._stack, self._emit = model, tokenizer, stack, emit
        self._at_a_time = 1 if one_by_one else _AT_A_TIME
        self._portions = Portions("text encoder", emit)
        self._known: OrderedDict[Hashable, torch.Tensor] = OrderedDict()
        self._said: set[str] = set()

    def encode(self, wanted: Sequence[Wanted]) -> list[torch.Tensor]:
        """The embedding [77, width] of each, in order. Encodes those that are not known yet."""
        keys = [(each.text, each.clip_skip, self._stack.key(each.mix)) for each in wanted]
        missing = {key: each for key, each in zip(keys, wanted, strict=True) if key not in self._known}
        for clip_skip in sorted({each.clip_skip for each in missing.values()}):
            chosen = {key: each for key, each in missing.items() if each.clip_skip == clip_skip}
            embedded = self._encode(list(chosen.values()), clip_skip)
            self._known.update(zip(chosen, embedded, strict=True))
        found = [self._known[key] for key in keys]
        for key in keys:
            self._known.move_to_end(key)
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return found

    def forget(self) -> None:
        """For when an adapter has come or gone under a name."""
        self._known.clear()

    def _encode(self, wanted: Sequence[Wanted], clip_skip: int) -> torch.Tensor:
        tokens = self._tokens([each.text for each in wanted]).to(self._model.device)

        def run(part: slice) -> torch.Tensor:
            self._stack.put_in([each.mix for each in wanted[part]])
            if clip_skip == 1:
                return self._model(tokens[part])[0]
            layer = self._model(tokens[part], output_hidden_states=True).hidden_states[-clip_skip]
            return self._model.text_model.final_layer_norm(layer)

        try:
            return self._portions.run(run, len(wanted), self._at_a_time)
        finally:
            self._stack.take_out()

    def _tokens(self, texts: Sequence[str]) -> torch.Tensor:
        """Token ids [N, 77]. What CLIP cannot take is said once for each prompt."""
        longest = self._tokenizer.model_max_length
        for text in dict.fromkeys(texts):
            ids = self._tokenizer(text, truncation=False, verbose=False).input_ids
            if len(ids) > longest and text not in self._said:
                self._said.add(text)
                cut = self._tokenizer.decode(ids[longest - 1 : -1])
                self._emit(
                    "warning", text=f'prompt of {len(ids) - 2} tokens: CLIP takes {longest - 2}; left out: "{cut}"'
                )
        found: torch.Tensor = self._tokenizer(
            list(texts), padding="max_length", max_length=longest, truncation=True, return_tensors="pt"
        ).input_ids
        return found
