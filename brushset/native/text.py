"""The captions as the UNet sees them: token chunks, and the text encoder's states.

Texts longer than CLIP's window are cut into chunks of 75 tokens, each between its own begin and end marks, encoded
apart and joined under one pair of marks, as sd-scripts does for max_token_length 150 and 225.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from brushset.errors import EnvironmentProblem

if TYPE_CHECKING:
    import torch


_AT_ONCE = 32


Seen = tuple[str, int]
"""A caption, and the clip_skip that it is seen with."""


@dataclass(frozen=True)
class Wording:
    """A batch of captions, on the CPU: `numbers` are places in the table [N] or token ids [N, chunks, 77], which are seen
    with one clip_skip.
    """

    numbers: torch.Tensor
    clip_skip: int

    @property
    def is_cached(self) -> bool:
        return self.numbers.dim() == 1


class TextSource:
    """Captions → states [N, tokens, width], through an encoder that may be in training. `clip_skips` are all that will be
    asked for; 1 is the encoder's own output.

    `prepare` and `join` are done on the CPU, `states` on the device, so that nothing is awaited between them. Token lists
    are kept by caption. States are kept too, in one table, where `remember` was called: only for a frozen encoder.
    """

    def __init__(
        self, tokenizer: Any, text_encoder: Any, *, max_token_length: int | None, clip_skips: Iterable[int] = (1,)
    ) -> None:
        self._tokenizer = tokenizer
        self._encoder = text_encoder
        self._length = (max_token_length or tokenizer.model_max_length - 2) + 2
        self._clip_skips = sorted(set(clip_skips))
        self._tokens: dict[str, torch.Tensor] = {}
        self._places: dict[Seen, int] = {}
        self._table: torch.Tensor | None = None

    def tokens(self, caption: str) -> torch.Tensor:
        """Token ids, int64 [chunks, 77]."""
        if caption not in self._tokens:
            self._tokens[caption] = tokenize_in_chunks(self._tokenizer, caption, self._length)
        return self._tokens[caption]

    def prepare(self, captions: Sequence[str], clip_skip: int = 1, *, live: bool = False) -> Wording:
        """A batch of captions as numbers: places where all are in the table, unless all are to be encoded `live`."""
        import torch

        places = [] if live else [self._places.get((caption, clip_skip)) for caption in captions]
        if places and None not in places:
            return Wording(torch.tensor(places), clip_skip)
        return Wording(torch.stack([self.tokens(caption) for caption in captions]), clip_skip)

    def join(self, wordings: Sequence[Wording]) -> dict[str, torch.Tensor]:
        """Several batches as one: `places`, `tokens`, or both, with `order` [N] saying where each sample's states are among
        the former's and, behind them, the latter's. Where clip_skips differ, `levels` are those of `tokens`.
        """
        import torch

        cached, live = ([each for each in wordings if each.is_cached is held] for held in (True, False))
        kinds = {"places": [each.numbers for each in cached], "tokens": [each.numbers for each in live]}
        if len(self._clip_skips) > 1:
            kinds["levels"] = [torch.full((len(each.numbers),), each.clip_skip) for each in live]
        joined = {name: parts[0] if len(parts) == 1 else torch.cat(parts) for name, parts in kinds.items() if parts}
        if cached and live:
            at = {True: 0, False: len(joined["places"])}
            order: list[int] = []
            for each in wordings:
                start = at[each.is_cached]
                at[each.is_cached] = start + len(each.numbers)
                order += range(start, at[each.is_cached])
            joined["order"] = torch.tensor(order)
        return joined

    def states(self, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """States of what `join` made, on the device; with gradients where the caller has them enabled."""
        import torch

        parts = []
        if "places" in given and self._table is not None:
            parts.append(self._table.index_select(0, given["places"]))
        if "tokens" in given:
            parts.append(encode_tokens(self._encoder, given["tokens"], self._clip_skips, given.get("levels")))
        return parts[0] if len(parts) == 1 else torch.cat(parts).index_select(0, given["order"])

    def encode(self, seen: Sequence[Seen]) -> torch.Tensor:
        """States of a batch of captions."""
        given = self.join([self.prepare([caption], clip_skip) for caption, clip_skip in seen])
        return self.states({name: tensor.to(self._encoder.device) for name, tensor in given.items()})

    def remember(self, seen: Iterable[Seen]) -> None:
        """Encodes each once and keeps it, without gradients."""
        import torch

        wanted = sorted(set(seen) - set(self._places))
        if not wanted:
            return
        with torch.no_grad():
            found = [self.encode(wanted[start : start + _AT_ONCE]) for start in range(0, len(wanted), _AT_ONCE)]
            self._places |= {each: len(self._places) + place for place, each in enumerate(wanted)}
            self._table = torch.cat([*([] if self._table is None else [self._table]), *found])


def tokenize_in_chunks(tokenizer: Any, text: str, length: int) -> torch.Tensor:
    """Token ids, int64 [chunks, window]; `length` counts both marks, and one window has one chunk.

    Raises:
        EnvironmentProblem: the tokenizer pads with another token than its end mark, unlike SD 1's.
    """
    import torch

    ids = tokenizer(text, padding="max_length", truncation=True, max_length=length, return_tensors="pt").input_ids[0]
    window = tokenizer.model_max_length
    if length <= window:
        return ids.unsqueeze(0)
    if tokenizer.pad_token_id != tokenizer.eos_token_id:
        raise EnvironmentProblem(
            f"the tokenizer pads with token {tokenizer.pad_token_id}, not its end mark {tokenizer.eos_token_id}: "
            "not Stable Diffusion 1's; set max_token_length = 75"
        )
    starts = range(1, length - window + 2, window - 2)
    return torch.stack([torch.cat([ids[:1], ids[start : start + window - 2], ids[-1:]]) for start in starts])


def encode_tokens(
    text_encoder: Any, tokens: torch.Tensor, clip_skips: Sequence[int] = (1,), levels: torch.Tensor | None = None
) -> torch.Tensor:
    """States [N, 75·chunks + 2, width] of token ids [N, chunks, 77].

    A clip_skip of n takes the n-th layer from the end, under the final norm; 1 is the encoder's own output. Of several,
    `levels` [N] says which one is each sample's. It lies on the device, so all of them are made and one is taken: a layer
    behind the one that is taken has no part in the states, and none in the gradients.
    """
    import torch

    batch, chunks, window = tokens.shape
    flat = tokens.reshape(batch * chunks, window)
    if list(clip_skips) == [1]:
        states = text_encoder(flat)[0].unflatten(0, (batch, chunks))
    else:
        hidden = text_encoder(flat, output_hidden_states=True, return_dict=True).hidden_states
        states, *others = (hidden[-skip].unflatten(0, (batch, chunks)) for skip in clip_skips)
        for skip, other in zip(clip_skips[1:], others, strict=True):
            assert levels is not None, "of several, one is each sample's"
            states = torch.where((levels == skip).view(-1, 1, 1, 1), other, states)
        states = text_encoder.text_model.final_layer_norm(states)
    if chunks == 1:
        return states.squeeze(1)
    inner = states[:, :, 1:-1].reshape(batch, chunks * (window - 2), -1)
    return torch.cat([states[:, 0, :1], inner, states[:, -1, -1:]], dim=1)
