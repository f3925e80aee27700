"""The report's part on captions: what was taken out of them, what was found, how long they are, what they name."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from statistics import median

from brushset.captions.checks import count_parts, count_words
from brushset.captions.text import with_trigger
from brushset.records import CaptionFinding, Captions, Prepared

_EXAMPLES = 5
_FREQUENT = 24


@dataclass(frozen=True)
class CaptionsPart:
    """`tokens` are least, median and most; `led` are captions that the trigger leads; `stripped` and `kept` are style words
    → times; `examples` are captions before and after, each change once.
    """

    count: int
    led: int
    captioner: str
    weights: str
    sources: tuple[tuple[str, int], ...]
    findings: tuple[CaptionFinding, ...]
    stripped: dict[str, int]
    changed: int
    examples: tuple[tuple[str, str], ...]
    kept: dict[str, int]
    tokens: tuple[int, int, int]
    limit: int
    parts: dict[str, int]
    words: dict[str, int]


def captions_part(captions: Captions, prepared: Prepared) -> CaptionsPart:
    """What the page shows of a run's captions; findings name the user's own files."""
    items = captions.captions
    originals = {image.name: image.source for image in (*prepared.images, *prepared.heldout)}
    changed = [item for item in items if item.stripped]
    lengths = [item.tokens for item in items] or [0]
    examples = dict.fromkeys((with_trigger(item.said, captions.trigger), item.text) for item in changed)
    return CaptionsPart(
        count=len(items),
        led=sum(item.text.split(",")[0] == captions.trigger for item in items),
        captioner=captions.captioner,
        weights=captions.weights,
        sources=tuple(Counter(item.source for item in items).most_common()),
        findings=tuple(
            finding.model_copy(update={"images": tuple(originals.get(name, name) for name in finding.images)})
            for finding in captions.findings
        ),
        stripped=dict(Counter(word for item in items for word in item.stripped).most_common()),
        changed=len(changed),
        examples=tuple(examples)[:_EXAMPLES],
        kept=captions.kept_style_words,
        tokens=(min(lengths), round(median(lengths)), max(lengths)),
        limit=captions.token_limit,
        parts=_first(count_parts(items, captions.trigger)),
        words=_first(count_words(items, captions.trigger)),
    )


def _first(counted: dict[str, int]) -> dict[str, int]:
    """The most frequent of what stands in more than one caption."""
    return dict([(name, count) for name, count in counted.items() if count > 1][:_FREQUENT])
