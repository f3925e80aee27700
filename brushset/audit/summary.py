"""What is found of a set: one Finding a code, the verdict with its reasons, and how to go on all the same.

    unusable          nothing is usable, or more than [dataset] max_unusable_share of the images cannot be used: the run stops
    too few           fewer than [dataset] min_images different usable images
    needs upscaling   more than half of the usable images are smaller than their buckets
    duplicates        more than [dataset] max_duplicate_share of the usable images are near-duplicates of another
    ok                none of these
The first that holds, in this order, is the verdict. What dataset.accept names counts for none of them.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from brushset.audit.codes import CODES, limit_of
from brushset.audit.judge import STOPS
from brushset.errors import InputError
from brushset.files import one_line, shown
from brushset.listing import LeftOut
from brushset.records import Audit, AuditedImage, DuplicateGroup, Finding, SetVerdict, Severity
from brushset.spec import DatasetSection

NAMED_IMAGES = 200
_MOST = 0.5
_NAMED_IN_A_LINE = 5


@dataclass(frozen=True)
class Set:
    """All there is to judge a set by. `captions`: paths of the images that have a caption beside them."""

    folder: Path
    dataset: DatasetSection
    images: Sequence[AuditedImage]
    groups: Sequence[DuplicateGroup]
    captions: frozenset[str]
    left_out: Sequence[LeftOut] = ()

    @cached_property
    def usable(self) -> list[AuditedImage]:
        return [image for image in self.images if image.verdict != "unusable"]

    @cached_property
    def different(self) -> int:
        """Usable images, byte-equal copies counted once."""
        return len({image.sha256 for image in self.usable})

    @cached_property
    def near_duplicates(self) -> int:
        """Different usable images beyond the first of each group."""
        different = {image.sha256: image.group for image in self.usable if image.group is not None}
        return len(different) - len(set(different.values()))

    @cached_property
    def refused(self) -> int:
        """Images that speak against the set: unusable for something that is not accepted."""
        return sum(
            any(code in image.findings and code not in self.dataset.accept for code in STOPS)
            for image in self.images
            if image.verdict == "unusable"
        )

    @property
    def is_unusable(self) -> bool:
        return not self.usable or self.refused > self.dataset.max_unusable_share * len(self.images)

    @property
    def is_few(self) -> bool:
        return bool(self.images) and self.different < self.dataset.min_images

    @property
    def is_small(self) -> bool:
        enlarged = sum(image.verdict == "needs upscaling" for image in self.usable)
        return enlarged > _MOST * len(self.usable)

    @property
    def is_repetitive(self) -> bool:
        return self.near_duplicates > self.dataset.max_duplicate_share * len(self.usable)


def summarise(found: Set) -> Audit:
    """The record of a set."""
    findings = tuple(_findings(found))
    verdicts = Counter(image.verdict for image in found.images)
    sides = [min(image.width_px, image.height_px) for image in found.images if image.width_px] or [0]
    return Audit(
        folder=str(found.folder.resolve()),
        found=len(found.images),
        ok=verdicts["ok"],
        needs_upscaling=verdicts["needs upscaling"],
        unusable=verdicts["unusable"],
        verdict=_verdict(found),
        reasons=tuple(_reasons(found, findings)),
        formats=dict(sorted(Counter(image.format or "none" for image in found.images).items())),
        min_side_px=min(sides),
        median_side_px=round(statistics.median(sides)),
        max_side_px=max(sides),
        with_sidecar=len(found.captions),
        different=found.different,
        findings=findings,
        buckets=_bucket_counts(found.usable),
        exact_duplicates=sum("exact-duplicates" in image.findings for image in found.images),
        near_duplicates=found.near_duplicates,
        left_out=tuple(str(item) for item in found.left_out),
    )


def refusal_of(audit: Audit, folder: Path, page: Path) -> InputError:
    """Why the set in `folder` is not trained on: the count and the page that shows it, then every reason."""
    if not audit.found:
        return InputError(audit.reasons[0])
    head = (
        f"{shown(folder)}: {audit.unusable} of {audit.found} images cannot be trained on; fix: see the lines below; "
        f"all of it with pictures: {shown(page)}"
    )
    return InputError("\n".join([head, *audit.reasons]))


def accept_option(found: Set) -> str:
    """The option with which an unusable set would go on, as a shell takes it; empty where nothing would help."""
    codes = {code for code in STOPS if any(code in image.findings for image in found.images)}
    if not found.usable and "too-small" not in codes:
        return ""
    accepted = sorted({*found.dataset.accept, *codes})
    return (
        f"--set dataset.accept={accepted[0]}"
        if len(accepted) == 1
        else f"--set 'dataset.accept={json.dumps(accepted)}'"
    )


def _verdict(found: Set) -> SetVerdict:
    accept = found.dataset.accept
    if found.is_unusable:
        return "unusable"
    if found.is_few and "too-few" not in accept:
        return "too few"
    if found.is_small and "needs-upscaling" not in accept:
        return "needs upscaling"
    return "duplicates" if found.is_repetitive and "near-duplicates" not in accept else "ok"


def _reasons(found: Set, findings: Sequence[Finding]) -> list[str]:
    if not found.images:
        return [f"{shown(found.folder)}: no image in it; fix: put the images there or pass --images DIR"]
    return [finding.line for finding in findings]


def _findings(found: Set) -> list[Finding]:
    """All that was found, in the order of CODES."""
    by_code: dict[str, list[tuple[str, str]]] = {code: [] for code in CODES}
    for image in found.images:
        for code, text in image.findings.items():
            # Each such image has a fix of its own, on the page and in audit.json; here the reason will do.
            by_code[code].append((image.path, image.reason if code == "unreadable" else text))
    by_code["captions-missing"] = _without_caption(found)
    by_code["left-out"] = [(item.path, f"{item.reason}; {item.fix}") for item in found.left_out]
    by_code["ground"] = _on_ground(found)
    findings = []
    for code, items in by_code.items():
        if code == "too-few" and found.is_few:
            findings.append(_finding(found, code, [], f"{found.different} {CODES[code].text}"))
        elif items:
            findings.append(_finding(found, code, [path for path, _ in items], _text(found, code, items)))
    return findings


def _finding(found: Set, code: str, paths: Sequence[str], text: str) -> Finding:
    severity, fix = _severity(found, code), CODES[code].fix
    if severity == "stop" and (option := accept_option(found)):
        fix += f"; to go on without that: {option}"
    if limit := limit_of(code, found.dataset):
        text += f"; {limit}"
    return Finding(
        code=code, severity=severity, count=len(paths), images=tuple(paths[:NAMED_IMAGES]), text=text, fix=fix,
        accepted=code in found.dataset.accept,
    )  # fmt: skip


def _text(found: Set, code: str, items: Sequence[tuple[str, str]]) -> str:
    head = f"{len(items)} {'' if code == 'left-out' else f'of {len(found.images)} '}{CODES[code].text}"
    if code == "near-duplicates":
        groups = [group for group in found.groups if group.kind == "near"]
        told = "; ".join(_names(group.images, " = ") for group in groups[:_NAMED_IN_A_LINE]) + _and_more(groups)
        return f"{head}, in {len(groups)} groups: {told}"
    return f"{head}: {_told(items)}"


def _without_caption(found: Set) -> list[tuple[str, str]]:
    """Only where others have one: then these may have been forgotten."""
    return [(image.path, "") for image in found.images if image.path not in found.captions] if found.captions else []


def _on_ground(found: Set) -> list[tuple[str, str]]:
    """Only where most do: then it is part of what is learned."""
    paths = [image.path for image in found.images if image.measures and image.measures.margin == "ground"]
    return [(path, "") for path in paths] if len(paths) > _MOST * len(found.images) else []


def _severity(found: Set, code: str) -> Severity:
    if code in found.dataset.accept:
        return "note"
    if code in STOPS:
        return "stop" if found.is_unusable else "warning"
    if (code == "needs-upscaling" and not found.is_small) or (code == "near-duplicates" and not found.is_repetitive):
        return "note"
    return CODES[code].severity


def _told(items: Sequence[tuple[str, str]]) -> str:
    """Paths with what is said of each: what is said of several once, of many by example."""
    texts = Counter(text for _, text in items)
    if len(texts) == 1:
        said = items[0][1]
        return f"{said} ({_names([path for path, _ in items])})" if said else _names([path for path, _ in items])
    if len(items) > _NAMED_IN_A_LINE and len(texts) <= _NAMED_IN_A_LINE:
        return "; ".join(f"{text} ({count} images)" if count > 1 else text for text, count in texts.most_common())
    examples = "; ".join(f"{one_line(path)} ({text})" for path, text in items[:_NAMED_IN_A_LINE])
    return examples + _and_more(items)


def _names(paths: Sequence[str], between: str = ", ") -> str:
    return between.join(one_line(path) for path in paths[:_NAMED_IN_A_LINE]) + _and_more(paths)


def _and_more(items: Sequence[object]) -> str:
    return f" and {len(items) - _NAMED_IN_A_LINE} more" if len(items) > _NAMED_IN_A_LINE else ""


def _bucket_counts(images: Sequence[AuditedImage]) -> dict[str, int]:
    """Images a bucket, each content once, as the trainer would count them were none held out."""
    buckets = {image.sha256: image.bucket for image in images if image.bucket}
    return {f"{width}x{height}": count for (width, height), count in sorted(Counter(buckets.values()).items())}
