"""Takes the style out of a caption, so that the trigger carries it: "a watercolor painting of a cat" → "a cat".

What is described in words is not bound to the trigger: a model that knows "watercolor" already explains the look by
that word. Words and phrases are found whole, in any case, with a plural s and with hyphens for spaces. Taking words
out of a sentence leaves litter (articles, "of", "in", "style"); the rules below clear what the cut itself left behind,
and touch no part of a caption in which nothing was found. They are patterns, not grammar: what they do is shown.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

# Stand-ins while a part is being cleaned: a cut, a cut that was followed by "of", and the trigger.
_CUT, _FRAME, _TRIGGER = "\x00", "\x02", "\x01"
_ARTICLE = r"(?:a|an|the|this|that)"
_LINK = r"(?:in|with|as|by|on|using|from)"
# A medium named by two words, of which the list needs only the first: "watercolor painting", "anime-style".
_NOUN = r"(?:painting|drawing|illustration|artwork|art|sketch|picture|image|print|render|rendering)s?"
_STYLE = r"(?:style[ds]?|aesthetics?|effects?|technique)"

_RULES: tuple[tuple[str, str], ...] = (
    (rf"{_CUT}[\s-]+(?:{_STYLE}|{_NOUN})\b", _CUT),
    (rf"{_CUT}\s*\((?:medium|style|theme)\)", _CUT),
    (rf"{_CUT}(?:[\s/&-]+|\s+(?:and|or)\s+)(?={_CUT}|{_FRAME})", ""),
    (rf"{_CUT}\s+of\b", _FRAME),
    # "a beautiful [painting of] a cat": what stood before the head word belonged to it.
    (rf"^(?:there\s+(?:is|are)\s+)?(?:{_ARTICLE}\s+)?(?:(?!{_ARTICLE}\b|{_LINK}\b|of\b)[\w'’-]+\s+){{0,4}}{_FRAME}\s*", ""),
    (rf"(?:\b{_ARTICLE}\s+)?{_FRAME}\s*", ""),
    # "a cat in the style of [watercolor]", "a cat in [watercolor] with a hat"
    (rf"\b{_LINK}\s+(?:{_ARTICLE}\s+)?{_STYLE}\s+of\s+{_CUT}", _CUT),
    (rf"\b(?:done\s+|made\s+|drawn\s+|painted\s+)?{_LINK}\s+(?:{_ARTICLE}\s+)?{_CUT}(?=\s*$|\s+(?:{_LINK}|of|and|that|at)\b)", ""),
    (rf"(?:\b(?:and|or)\s+)?(?:\b{_ARTICLE}\s+)?{_CUT}(?=\s*$)", ""),
    (rf"\b{_ARTICLE}\s+{_CUT}(?=\s+(?:{_LINK}|of|and|or|{_ARTICLE})\b)", ""),
)  # fmt: skip
_LEFT_OVER = r"(?:of|and|or|by|a|an|the|style|styled)"
_AN_BEFORE = re.compile(r"(?:[aeiou](?!ni[a-z]|se|su|u)|hour|honest|heir)", re.IGNORECASE)
_NOTHING_SAID = re.compile(r"[\W_]*", re.UNICODE)
_BETWEEN = r"[\s-]+"


@dataclass(frozen=True)
class Stripped:
    """A caption without style words, and which of the list were found, once for each time."""

    text: str
    words: tuple[str, ...]


def strip_style_words(text: str, words: Sequence[str], *, trigger: str = "") -> Stripped:
    """Takes the words out of every comma-separated part; a part of which nothing is left goes. Never the trigger."""
    pattern = _pattern(tuple(words))
    if pattern is None:
        return Stripped(text, ())
    found: list[str] = []

    def cut(match: re.Match[str]) -> str:
        named = next(name for name, value in match.groupdict().items() if value)
        word = words[int(named[1:])]
        found.append(word)
        return _FRAME if _plain(word).endswith(" of") else _CUT

    parts = []
    for part in text.split(","):
        masked = _masked(part, trigger)
        marked = pattern.sub(cut, masked)
        cleaned = part if marked == masked else _clean(marked).replace(_TRIGGER, trigger)
        if not _NOTHING_SAID.fullmatch(cleaned):
            parts.append(cleaned.strip())
    return Stripped(", ".join(parts) if found else text, tuple(found))


def _clean(marked: str) -> str:
    text = marked
    for rule, replacement in _RULES:
        text = re.sub(rule, replacement, text, flags=re.IGNORECASE)
    text = re.sub(rf"\b(an?)\s+{_CUT}[\s-]*(\w+)", _agreed, text, flags=re.IGNORECASE)
    text = " ".join(re.sub(rf"{_CUT}-?", " ", text).split())
    text = re.sub(rf"\b{_ARTICLE}\s+(?={_ARTICLE}\b)", "", text, flags=re.IGNORECASE)
    before = ""
    while before != text:
        before = text
        text = re.sub(rf"^(?:of|and|or|by|-)\s+|\s+(?:{_LEFT_OVER}|{_LINK}|-)$", "", text, flags=re.IGNORECASE)
    return "" if re.fullmatch(rf"{_LEFT_OVER}|{_LINK}|-", text, flags=re.IGNORECASE) else text


def _agreed(match: re.Match[str]) -> str:
    """The article that the next word wants: "an anime girl" → "a girl"."""
    article = "an" if _AN_BEFORE.match(match[2]) else "a"
    return f"{article.capitalize() if match[1][0].isupper() else article} {match[2]}"


def _masked(part: str, trigger: str) -> str:
    if not trigger:
        return part
    return re.sub(rf"(?<!\w){re.escape(trigger)}(?!\w)", _TRIGGER, part, flags=re.IGNORECASE)


def _plain(word: str) -> str:
    return " ".join(word.lower().replace("-", " ").split())


@lru_cache(maxsize=8)
def _pattern(words: tuple[str, ...]) -> re.Pattern[str] | None:
    """One pattern for all words, the longest first, each a group named by its place in the list."""
    order = sorted((index for index, word in enumerate(words) if word.strip()), key=lambda index: -len(words[index]))
    choices = []
    for index in order:
        tokens = [re.escape(token) + ("s?" if token[-1].isalpha() else "") for token in _plain(words[index]).split()]
        choices.append(f"(?P<w{index}>{_BETWEEN.join(tokens)})")
    return re.compile(rf"(?<!\w)(?:{'|'.join(choices)})(?!\w)", re.IGNORECASE) if choices else None
