"""Which words does one sample of an image see?

sd-scripts' rules in its order (`BaseDataset.process_caption` at v0.10.1): prefix and suffix; dropped whole; wildcards;
tags behind the kept ones shuffled and thinned out; the secondary separator last. Only the random numbers are our own.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from brushset.native.settings import DatasetKeys

_WILDCARD = re.compile(r"\{([^}]+)\}")


@dataclass(frozen=True)
class When:
    """How far training is: `epoch` from 1, `step` updates that are done, of `steps`."""

    epoch: int = 1
    step: int = 0
    steps: int = 1


def full_caption(caption: str, keys: DatasetKeys) -> str:
    """The caption with prefix and suffix, joined by spaces."""
    with_prefix = f"{keys.caption_prefix} {caption}" if keys.caption_prefix else caption
    return f"{with_prefix} {keys.caption_suffix}" if keys.caption_suffix else with_prefix


def varies(keys: DatasetKeys) -> bool:
    """Whether samples of one image see more than its full caption and the empty one."""
    return _splits(keys) or keys.enable_wildcard


def fixed_caption(caption: str, keys: DatasetKeys) -> str:
    """The caption where nothing is left to chance: of images that are only looked at."""
    still = {"shuffle_caption": False, "caption_dropout_rate": 0.0, "caption_dropout_every_n_epochs": 0,
             "caption_tag_dropout_rate": 0.0, "token_warmup_step": 0}  # fmt: skip
    return vary_caption(caption, keys.model_copy(update=still), random.Random(0), When())


def vary_caption(caption: str, keys: DatasetKeys, rng: random.Random, when: When) -> str:
    """The caption of a file as one sample sees it."""
    caption = full_caption(caption, keys)
    every = keys.caption_dropout_every_n_epochs
    dropped = keys.caption_dropout_rate > 0 and rng.random() < keys.caption_dropout_rate
    if dropped or (every and when.epoch % every == 0):
        return ""
    caption = _fill_wildcards(caption, rng) if keys.enable_wildcard else caption.split("\n")[0]
    if _splits(keys):
        caption = _vary_tags(caption, keys, rng, when)
    if keys.secondary_separator:
        caption = caption.replace(keys.secondary_separator, keys.caption_separator)
    return caption


def _splits(keys: DatasetKeys) -> bool:
    return keys.shuffle_caption or keys.caption_tag_dropout_rate > 0 or keys.token_warmup_step > 0


def _fill_wildcards(caption: str, rng: random.Random) -> str:
    """One of the lines, and one choice of each {a|b|c}; doubled braces stand for themselves."""
    if "\n" in caption:
        caption = rng.choice(caption.split("\n"))
    held = caption.replace("{{", "\0").replace("}}", "\1")
    filled = _WILDCARD.sub(lambda match: rng.choice(match.group(1).split("|")), held)
    return filled.replace("\0", "{").replace("\1", "}")


def _vary_tags(caption: str, keys: DatasetKeys, rng: random.Random, when: When) -> str:
    kept, loose, end = _part(caption, keys)
    loose = loose[: _warmed_up(len(loose), keys, when)]
    if keys.shuffle_caption:
        rng.shuffle(loose)
    if keys.caption_tag_dropout_rate:
        loose = [tag for tag in loose if rng.random() >= keys.caption_tag_dropout_rate]
    return ", ".join([*kept, *loose, *end])


def _part(caption: str, keys: DatasetKeys) -> tuple[list[str], list[str], list[str]]:
    """Tags that stay in front, those that may move, those that stay at the end."""
    mark = keys.keep_tokens_separator
    if mark and mark in caption:
        first, _, rest = caption.partition(mark)
        middle, _, last = rest.partition(mark)
        kept, loose, end = (_tags(part, keys, empty=False) for part in (first, middle, last))
        return kept, loose, end
    tags = _tags(caption.strip(), keys, empty=True)
    return tags[: keys.keep_tokens], tags[keys.keep_tokens :], []


def _tags(text: str, keys: DatasetKeys, *, empty: bool) -> list[str]:
    return [tag.strip() for tag in text.split(keys.caption_separator) if empty or tag.strip()]


def _warmed_up(tags: int, keys: DatasetKeys, when: When) -> int:
    """How many loose tags are seen by now: from token_warmup_min on, all of them after token_warmup_step updates."""
    asked = keys.token_warmup_step
    whole = math.floor(asked * when.steps) if asked < 1 else asked
    if not whole or when.step >= whole:
        return tags
    return math.floor(when.step * ((tags - keys.token_warmup_min) / whole)) + keys.token_warmup_min


def tag_frequency(captions: Sequence[str]) -> dict[str, int]:
    """How often each comma-separated, lower-cased part occurs, in order of first sight, as sd-scripts counts it."""
    counts: dict[str, int] = {}
    for caption in captions:
        for tag in filter(None, (part.strip().lower() for part in caption.split(","))):
            counts[tag] = counts.get(tag, 0) + 1
    return counts
