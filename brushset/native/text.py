"""The captions as the UNet sees them: token chunks, and the text encoder's states.

Texts longer than CLIP's window are cut into chunks of 75 tokens, each between its own begin and end marks, encoded
apart and joined under one pair of marks, as sd-scripts does for max_token_length 150 and 225.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from brushset.errors import EnvironmentProblem

if TYPE_CHECKING:
    import torch


_AT_ONCE = 32


class TextSource:
    """Captions → states [N, tokens, width], through an encoder that may be in training.

    `prepare` is done on the CPU, `states` on the device, so that nothing is awaited between them. Token lists are kept by
    caption. States are kept too, in one table, where `remember` was called: only for a frozen encoder.
    """

    def __init__(self, tokenizer: Any, text_encoder: Any, *, max_token_length: int | None, clip_skip: int | None):
        self._tokenizer = tokenizer
        self._encoder = text_encoder
        self._length = (max_token_length or tokenizer.model_max_length - 2) + 2
        self._clip_skip = clip_skip
        self._tokens: dict[str, torch.Tensor] = {}
        self._places: dict[str, int] = {}
        self._table: torch.Tensor | None = None

    def tokens(self, caption: str) -> torch.Tensor:
        """Token ids, int64 [chunks, 77]."""
        if caption not in self._tokens:
            self._tokens[caption] = tokenize_in_chunks(self._tokenizer, caption, self._length)
        return self._tokens[caption]

    def prepare(self, captions: Sequence[str], *, live: bool = False) -> torch.Tensor:
        """A batch of captions as numbers, on the CPU: places in the table [N], or token ids [N, chunks, 77] where one is
        not in it, or all are to be encoded `live`.
        """
        import torch

        if not live and self._table is not None and all(caption in self._places for caption in captions):
            return torch.tensor([self._places[caption] for caption in captions])
        return torch.stack([self.tokens(caption) for caption in captions])

    def states(self, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """States of what `join` made, on the device; with gradients where the caller has them enabled."""
        import torch

        parts = []
        if "places" in given and self._table is not None:
            parts.append(self._table.index_select(0, given["places"]))
        if "tokens" in given:
            parts.append(encode_tokens(self._encoder, given["tokens"], clip_skip=self._clip_skip))
        return parts[0] if len(parts) == 1 else torch.cat(parts).index_select(0, given["order"])

    def encode(self, captions: Sequence[str]) -> torch.Tensor:
        """States of a batch of captions."""
        given = join([self.prepare(captions)])
        return self.states({name: tensor.to(self._encoder.device) for name, tensor in given.items()})

    def remember(self, captions: Iterable[str]) -> None:
        """Encodes each distinct caption once and keeps it, without gradients."""
        import torch

        wanted = sorted(set(captions) - set(self._places))
        if not wanted:
            return
        with torch.no_grad():
            found = [self.encode(wanted[start : start + _AT_ONCE]) for start in range(0, len(wanted), _AT_ONCE)]
            self._places |= {caption: len(self._places) + place for place, caption in enumerate(wanted)}
            self._table = torch.cat([*([] if self._table is None else [self._table]), *found])


def join(prepared: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """What TextSource.prepare made of several batches, as one batch: `places`, `tokens`, or both, with `order` [N] saying
    where each sample's states are among the former's and, behind them, the latter's.
    """
    import torch

    kinds = {"places": [each for each in prepared if each.dim() == 1]}
    kinds["tokens"] = [each for each in prepared if each.dim() > 1]
    joined = {name: parts[0] if len(parts) == 1 else torch.cat(parts) for name, parts in kinds.items() if parts}
    if len(joined) > 1:
        at = {1: 0, 3: len(joined["places"])}
        order: list[int] = []
        for each in prepared:
            order += range(at[each.dim()], at[each.dim()] + len(each))
            at[each.dim()] += len(each)
        joined["order"] = torch.tensor(order)
    return joined


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


def encode_tokens(text_encoder: Any, tokens: torch.Tensor, *, clip_skip: int | None) -> torch.Tensor:
    """States [N, 75·chunks + 2, width] of token ids [N, chunks, 77].

    `clip_skip` n takes the n-th layer from the end, under the final norm; None and 1 are the encoder's own output.
    """
    import torch

    batch, chunks, window = tokens.shape
    flat = tokens.reshape(batch * chunks, window)
    if clip_skip is None:
        states = text_encoder(flat)[0]
    else:
        layers = text_encoder(flat, output_hidden_states=True, return_dict=True).hidden_states
        states = text_encoder.text_model.final_layer_norm(layers[-clip_skip])
    states = states.reshape(batch, chunks, window, -1)
    inner = states[:, :, 1:-1].reshape(batch, chunks * (window - 2), -1)
    return torch.cat([states[:, 0, :1], inner, states[:, -1, -1:]], dim=1)
