"""Is what stands in the caption files what will be trained? Asked before a GPU minute is spent.

Errors are what would stop sd-scripts, or make it train something else without a word; all other findings are recorded
and shown. The rules of parts are sd-scripts' own (brushset.captions.effective); lengths are counted by CLIP's own
tokenizer, which the caller hands in.
"""

from __future__ import annotations

import codecs
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from brushset.captions.effective import CaptionRules, effective_caption, split_parts
from brushset.records import Caption, CaptionFinding

EQUAL_SHARE = 0.2  # so many equal captions are no coincidence: the captioner has failed
FREQUENT = 40
_EXAMPLES = 3
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_ARTICLES_AND_LINKS = (
    "a an the of in on at with and or is are was that this there to it its his her their by for from as"
)
_SMALL_WORDS = frozenset(_ARTICLES_AND_LINKS.split())
_STUCK = re.compile(r"\b(\w+(?:\s+\w+){0,3})(?:,?\s+\1\b){2,}", re.IGNORECASE)
_CHOICE = re.compile(r"\{[^}]*\|[^}]*\}")
_NAMED_WILDCARD = re.compile(r"__[\w-]+__")
_LOST_CHARACTER = "\ufffd"


@dataclass(frozen=True)
class CaptionSet:
    """What is checked, tokens already counted; `encode` and `decode` are CLIP's tokenizer, without begin and end marks."""

    captions: Sequence[Caption]
    rules: CaptionRules
    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]


def find_unreadable(contents: Mapping[str, bytes]) -> list[str]:
    """What is wrong with caption files as sd-scripts reads them, one line an image; nothing where all is well."""
    reasons = {image: _unreadable(content) for image, content in contents.items()}
    return [
        f"caption of {image}: {reason}; fix: delete the .txt and run again"
        for image, reason in reasons.items()
        if reason
    ]


def check_captions(found: CaptionSet) -> list[CaptionFinding]:
    """All findings, errors first."""
    findings = [finding for check in _CHECKS for finding in check(found)]
    order = ("error", "warning", "advice")
    return sorted(findings, key=lambda finding: order.index(finding.level))


def count_parts(captions: Sequence[Caption], trigger: str) -> dict[str, int]:
    """How often each comma-separated part stands in the captions, the trigger aside; the most frequent ones."""
    parts = (part.strip().lower() for caption in captions for part in caption.text.split(","))
    return _most(part for part in parts if part and part != trigger.lower())


def count_words(captions: Sequence[Caption], trigger: str) -> dict[str, int]:
    """In how many captions each word stands, small words and the trigger aside; the most frequent ones."""
    skip = _SMALL_WORDS | set(trigger.lower().split())
    return _most(word for caption in captions for word in set(_words(caption.text)) - skip)


def _most(items: Iterator[str]) -> dict[str, int]:
    counted = sorted(Counter(items).items(), key=lambda item: (-item[1], item[0]))
    return dict(counted[:FREQUENT])


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def _unreadable(content: bytes) -> str:
    if content.startswith(codecs.BOM_UTF8):
        return "begins with a byte-order mark, which would be trained"
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return "not UTF-8 text, on which sd-scripts ends"
    lines = re.split(r"\r\n|\r|\n", text.removesuffix("\n"))
    if not text.strip():
        return "empty, on which sd-scripts ends"
    if len(lines) > 1:
        return f"{len(lines)} lines, of which sd-scripts reads the first"
    if odd := next((char for char in lines[0] if not char.isprintable()), ""):
        return f"holds the control character {ascii(odd)[1:-1]}"
    return ""


def _trigger_first(found: CaptionSet) -> Iterator[CaptionFinding]:
    trigger = found.rules.trigger
    lost = [item for item in found.captions if item.text.split(",")[0].strip() != trigger]
    if lost:
        text = f'the trigger "{trigger}" is not the first part of {_of(lost, found)}: {_quoted(lost)}'
        yield _finding("error", "trigger-missing", text, lost)


def _trigger_stays(found: CaptionSet) -> Iterator[CaptionFinding]:
    """Shuffled or dropped parts must not take the trigger with them; a prefix must not push it away."""
    rules = found.rules
    moved = [item for item in found.captions if rules.takes_apart and not _is_fixed(item.text, rules)]
    if moved:
        why = "shuffle_caption" if rules.shuffle_caption else "token warm-up or tag dropout"
        fix = "set keep_tokens = 1, with no caption_prefix or keep_tokens_separator before the trigger"
        if rules.caption_separator in rules.trigger:
            fix = f'leave out caption_separator = "{rules.caption_separator}", which takes the trigger apart'
        text = f'{why} moves or drops the trigger "{rules.trigger}" in {_of(moved, found)}, as keep_tokens = '
        yield _finding("error", "trigger-moves", f"{text}{rules.keep_tokens} counts parts; fix: {fix}", moved)
        return
    pushed = [item for item in found.captions if not effective_caption(item.text, rules).startswith(rules.trigger)]
    if pushed:
        text = f'the trigger does not come first in what is trained: "{effective_caption(pushed[0].text, rules)}"'
        yield _finding("warning", "trigger-pushed", f"{text}; see caption_prefix, enable_wildcard, separators", pushed)


def _is_fixed(text: str, rules: CaptionRules) -> bool:
    full = f"{rules.caption_prefix} {text}" if rules.caption_prefix else text
    kept = ", ".join(split_parts(full, rules)[0])
    return kept == rules.trigger or kept.startswith(f"{rules.trigger},")


def _shuffling(found: CaptionSet) -> Iterator[CaptionFinding]:
    rules = found.rules
    if not rules.shuffle_caption or rules.keep_tokens_separator:
        return
    free = [item for item in found.captions if len(split_parts(item.text, rules)[1]) > 1]
    if not free:
        text = "shuffle_caption = true changes nothing: no caption has two parts behind those that stay"
        yield _finding("advice", "nothing-to-shuffle", text)
    elif rules.keep_tokens > 1:
        text = f"keep_tokens = {rules.keep_tokens} keeps more in front than the trigger, which is one part"
        yield _finding("advice", "keep-tokens", text)


def _wildcards(found: CaptionSet) -> Iterator[CaptionFinding]:
    choices = [item for item in found.captions if _CHOICE.search(item.text)]
    if choices and found.rules.enable_wildcard:
        text = f"one of the choices in braces is trained at a time, by chance, in {_of(choices, found)}"
        yield _finding("advice", "wildcards", text, choices)
    elif choices:
        text = f"braces are trained as they stand in {_of(choices, found)}: {_quoted(choices)}"
        yield _finding("warning", "braces", f"{text}; fix: --set train.extra.enable_wildcard=true, or reword", choices)
    named = [item for item in found.captions if _NAMED_WILDCARD.search(item.text)]
    if named:
        text = f"sd-scripts resolves no __name__, it is trained as it stands in {_of(named, found)}: {_quoted(named)}"
        yield _finding("warning", "named-wildcards", text, named)


def _too_long(found: CaptionSet) -> Iterator[CaptionFinding]:
    limit = found.rules.max_token_length
    long = sorted((item for item in found.captions if item.tokens > limit), key=lambda item: -item.tokens)
    if not long:
        return
    cut = "; ".join(f'"… {cut_off(item.text, found)}" ({item.tokens} tokens)' for item in long[:_EXAMPLES])
    room = next((length for length in (75, 150, 225) if length >= long[0].tokens), 225)
    fix = f"fix: --set train.max_token_length={room}, or shorten them" if room > limit else "fix: shorten them"
    text = f"{_of(long, found)} are longer than the {limit} tokens that are trained; cut off: {cut}; {fix}"
    yield _finding("warning", "too-long", text, long)


def cut_off(text: str, found: CaptionSet) -> str:
    """What of a caption lies behind the limit, as the tokenizer spells it."""
    tokens = found.encode(effective_caption(text, found.rules))
    return found.decode(tokens[found.rules.max_token_length :]).strip()


def _repeated(found: CaptionSet) -> Iterator[CaptionFinding]:
    """Captions that many images share say nothing of any; where a machine wrote them, it failed."""
    said = [item for item in found.captions if item.text != found.rules.trigger]
    equal = _groups(said, lambda item: item.text)
    if equal and len(equal[0]) > max(2, EQUAL_SHARE * len(found.captions)):
        text = f"{_of(equal[0], found)} are the same: {_quoted(equal[0])}; the captioner has failed, or tells nothing apart"
        yield _finding("warning", "equal", f"{text}; fix: another captioner, or --export and reword", equal[0])
        equal = equal[1:]
    if equal:
        groups = "; ".join(f"{len(group)} × {_quoted(group)}" for group in equal[:_EXAMPLES])
        yield _finding("advice", "some-equal", f"equal captions, {len(equal)} groups: {groups}", equal[0])
    near = [group for group in _groups(said, _gist) if len({item.text for item in group}) > 1]
    if near:
        first = near[0]
        others = sorted({item.text for item in first})[:2]
        text = f"captions that differ in small words or order only, {len(near)} groups, such as " + " and ".join(
            f'"{other}"' for other in others
        )
        yield _finding("advice", "near-equal", text, first)


def _gist(item: Caption) -> str:
    return " ".join(sorted(set(_words(item.text)) - _SMALL_WORDS))


def _groups(captions: Sequence[Caption], key: Callable[[Caption], str]) -> list[list[Caption]]:
    """Captions that share a key, in groups of two and more, the largest first."""
    by_key: defaultdict[str, list[Caption]] = defaultdict(list)
    for item in captions:
        by_key[key(item)].append(item)
    return sorted((group for group in by_key.values() if len(group) > 1), key=lambda group: -len(group))


def _garbled(found: CaptionSet) -> Iterator[CaptionFinding]:
    stuck = [item for item in found.captions if _STUCK.search(item.text)]
    if stuck:
        text = f"the same words over and over in {_of(stuck, found)}: {_quoted(stuck)}; fix: --export and reword"
        yield _finding("warning", "stuck", text, stuck)
    lost = [item for item in found.captions if _LOST_CHARACTER in item.text]
    if lost:
        text = f"characters were lost to a wrong encoding in {_of(lost, found)}: {_quoted(lost)}"
        yield _finding("warning", "lost-characters", text, lost)


def _known_trigger(found: CaptionSet) -> Iterator[CaptionFinding]:
    if len(found.encode(found.rules.trigger)) == 1:
        text = f'the trigger "{found.rules.trigger}" is one token of CLIP: a word that means something already'
        yield _finding("advice", "known-trigger", f"{text}; a made-up word is bound to the style alone")


def _finding(level: str, code: str, text: str, captions: Sequence[Caption] = ()) -> CaptionFinding:
    names = tuple(item.image for item in captions[:_EXAMPLES])
    return CaptionFinding.model_validate({"level": level, "code": code, "text": text, "images": names})


def _of(some: Sequence[Caption], found: CaptionSet) -> str:
    return f"{len(some)} of {len(found.captions)} captions"


def _quoted(captions: Sequence[Caption]) -> str:
    text = captions[0].text
    return f'"{text if len(text) <= 120 else text[:119] + "…"}"'


_CHECKS: tuple[Callable[[CaptionSet], Iterator[CaptionFinding]], ...] = (
    _trigger_first,
    _trigger_stays,
    _too_long,
    _repeated,
    _garbled,
    _wildcards,
    _shuffling,
    _known_trigger,
)
