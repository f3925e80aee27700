"""What sd-scripts makes of a caption file, sample by sample: the text that is tokenized.

After library/train_util.py, `read_caption` and `process_caption` (kohya-ss, Apache-2.0, v0.10.1), without dropout; a
vendor test holds this against the original. Prefix and suffix are joined by a space. Parts are what stands between
separators, so a trigger of two words is one part, and with a separator of " " it is two.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from brushset.spec import StyleSpec

_WILDCARD = re.compile(r"\{([^}]+)\}")


@dataclass(frozen=True)
class CaptionRules:
    """The options that decide what becomes of a caption, under sd-scripts' names."""

    trigger: str
    keep_tokens: int = 1
    shuffle_caption: bool = False
    caption_separator: str = ","
    keep_tokens_separator: str = ""
    secondary_separator: str = ""
    caption_prefix: str = ""
    caption_suffix: str = ""
    enable_wildcard: bool = False
    caption_tag_dropout_rate: float = 0.0
    token_warmup_step: float = 0
    max_token_length: int = 75

    @classmethod
    def of(cls, spec: StyleSpec) -> CaptionRules:
        """The rules of a style; `[train] extra` may hold those that have no setting of their own."""
        train, extra = spec.train, spec.train.extra
        own = ("trigger", "keep_tokens", "shuffle_caption", "max_token_length")
        more = {name: extra[name] for name in cls.__dataclass_fields__ if name not in own and name in extra}
        return cls(
            trigger=spec.trigger, keep_tokens=train.keep_tokens, shuffle_caption=train.shuffle_caption,
            max_token_length=train.max_token_length, **more,
        )  # fmt: skip

    @property
    def takes_apart(self) -> bool:
        """Whether captions are split into parts at all; else they are trained as they stand."""
        return self.shuffle_caption or self.token_warmup_step > 0 or self.caption_tag_dropout_rate > 0


def effective_caption(text: str, rules: CaptionRules, rng: random.Random | None = None) -> str:
    """The text that the trainer tokenizes. Without `rng` nothing is left to chance: parts keep their order, wildcards
    take their first choice.
    """
    text = text.split("\n", maxsplit=1)[0].strip()
    if rules.caption_prefix:
        text = f"{rules.caption_prefix} {text}"
    if rules.caption_suffix:
        text = f"{text} {rules.caption_suffix}"
    if rules.enable_wildcard:
        text = _resolve_wildcards(text, rng)
    if rules.takes_apart:
        fixed, free, last = split_parts(text, rules)
        if rng is not None and rules.shuffle_caption:
            rng.shuffle(free)
        text = ", ".join(fixed + free + last)
    if rules.secondary_separator:
        text = text.replace(rules.secondary_separator, rules.caption_separator)
    return text


def split_parts(text: str, rules: CaptionRules) -> tuple[list[str], list[str], list[str]]:
    """The parts that stay in front, those that may be shuffled and dropped, and those that stay at the end."""
    mark, separator = rules.keep_tokens_separator, rules.caption_separator
    if mark and mark in text:
        first, rest = text.split(mark, 1)
        rest, _, last = rest.partition(mark)
        return _filled(first, separator), _filled(rest, separator), _filled(last, separator)
    parts = [part.strip() for part in text.strip().split(separator)]
    return parts[: rules.keep_tokens], parts[rules.keep_tokens :], []


def _filled(text: str, separator: str) -> list[str]:
    return [part.strip() for part in text.split(separator) if part.strip()]


def _resolve_wildcards(text: str, rng: random.Random | None) -> str:
    opening, closing = "⦅", "⦆"
    while opening in text or closing in text:
        opening, closing = opening + "⦅", closing + "⦆"
    text = text.replace("{{", opening).replace("}}", closing)

    def choose(match: re.Match[str]) -> str:
        choices = match[1].split("|")
        return choices[0] if rng is None else rng.choice(choices)

    return _WILDCARD.sub(choose, text).replace(opening, "{").replace(closing, "}")
