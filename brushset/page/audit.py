"""The audit page: what was found of one set of images, each finding with its pictures, the verdict on top.

One self-contained file: a thumbnail stands in it once, as the background of a class, however many findings show it.
A page of 500 real images is 4.2 MB; Chromium loads and lays it out in 0.3-0.9 s on 2 cores that others keep busy.
File names are strangers' text: the template engine escapes them, `one_line` shows what cannot be printed.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from brushset.audit.codes import CODES
from brushset.audit.result import AuditResult
from brushset.audit.settings import AuditSettings
from brushset.files import one_line, write_atomic
from brushset.page.template import render_page
from brushset.records import Audit, AuditedImage, DuplicateGroup, Finding

PAGE = "index.html"

# Duplicates are seen side by side; what was left out has no picture.
_SHOWN_OTHERWISE = frozenset({"exact-duplicates", "near-duplicates", "left-out"})
_OPEN_AT_MOST = 24  # pictures of one finding that are seen at once; the others fold out
_NAMED_AT_MOST = 3  # reasons in the verdict; all of them follow below
_SHORT = 200  # letters of a reason that need no cutting
_GROUPS_AT_MOST = 300
_HEADLINES = {
    "ok": ("better", "Ready to train on"),
    "duplicates": ("plain", "Can be trained on; many of them show the same"),
    "needs upscaling": ("plain", "Can be trained on, after upscaling"),
    "too few": ("plain", "Can be trained on, but they are few"),
    "unusable": ("stop", "Not to be trained on as it is"),
}
# The finding that a verdict rests on: it is told first.
_DECISIVE = {"duplicates": "near-duplicates", "needs upscaling": "needs-upscaling", "too few": "too-few"}
_SEVERITIES = ("stop", "warning", "note")
# Least width / height of each class of shapes, and its name.
_SHAPES = (
    (2.0, "2:1 and wider"), (1.42, "3:2 to 2:1"), (1.15, "5:4 to 3:2"), (0.87, "square, or nearly"),
    (0.705, "4:5 to 2:3"), (0.5, "2:3 to 1:2"), (0.0, "1:2 and taller"),
)  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """One image as the page shows it. `thumbnail` is the class that draws it, empty where there is none."""

    thumbnail: str
    name: str
    size: str
    remark: str


@dataclass(frozen=True)
class FindingSection:
    """A finding with its pictures; `files` are those that there is no picture of, `unseen` are not on the page."""

    finding: Finding
    heading: str
    files: tuple[Picture, ...]
    seen: tuple[Picture, ...]
    folded: tuple[Picture, ...]
    unseen: int


@dataclass(frozen=True)
class GroupRow:
    """Images that show the same, the one to keep first."""

    group: DuplicateGroup
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Bar:
    """One row of a distribution; `share` of all."""

    label: str
    count: int
    share: float
    remark: str = ""


@dataclass(frozen=True)
class Verdict:
    """The box on top. `tone` is its class; `reasons` are pairs of what was found and the fix."""

    tone: str
    headline: str
    reasons: tuple[tuple[str, str], ...]
    more: int


def write_audit_page(folder: Path, title: str, result: AuditResult, settings: AuditSettings) -> Path:
    """Writes the page into `folder`; returns where."""
    path = folder / PAGE
    write_atomic(path, render_audit(title, result, settings))
    return path


def render_audit(title: str, result: AuditResult, settings: AuditSettings) -> str:
    """The page's HTML."""
    audit, pictures = result.audit, _Pictures(result)
    return render_page(
        "audit.html.j2",
        {
            "title": one_line(title),
            "audit": audit,
            "dataset": settings.dataset,
            "verdict": judge(audit),
            "thumbnails": [(pictures.classes[path], _uri(data)) for path, data in result.thumbnails.items()],
            "sections": [pictures.section(finding, audit.found) for finding in by_severity(audit.findings)],
            "groups": [pictures.group(group) for group in result.groups[:_GROUPS_AT_MOST]],
            "all_groups": len(result.groups),
            "quiet": pictures.quiet(),
            "sides": side_bars(result.images, settings),
            "shapes": shape_bars(result.images),
            "buckets": bucket_bars(result.images, audit.buckets),
            "captions": audit.with_sidecar / max(1, audit.found),
        },
    )


def judge(audit: Audit) -> Verdict:
    """The verdict with its reasons: what stops the set, else what is to be warned of."""
    tone, headline = _HEADLINES[audit.verdict]
    wanted = "stop" if audit.verdict == "unusable" else "warning"
    reasons = [finding for finding in audit.findings if finding.severity == wanted and not finding.accepted]
    reasons.sort(key=lambda finding: finding.code != _DECISIVE.get(audit.verdict))
    told = tuple(
        (finding.text if len(finding.text) <= _SHORT else heading(finding, audit.found), finding.fix)
        for finding in reasons[:_NAMED_AT_MOST]
    )
    if audit.verdict == "unusable" and not told:  # an empty folder has no finding
        told = tuple((what, fix) for what, _, fix in (line.partition("; fix: ") for line in audit.reasons))
    return Verdict(tone, headline, told, max(0, len(reasons) - len(told)))


def by_severity(findings: Sequence[Finding]) -> list[Finding]:
    """What stops first, notes last; otherwise in their order."""
    return sorted(findings, key=lambda finding: (finding.accepted, _SEVERITIES.index(finding.severity)))


def side_bars(images: Sequence[AuditedImage], settings: AuditSettings) -> list[Bar]:
    """How long the shorter sides are, in steps that matter for training."""
    dataset = settings.dataset
    size = dataset.resolution
    limit = dataset.max_upscale if dataset.upscaler == "lanczos" else dataset.max_upscale_model
    least = -(-size // limit)
    edges = [0, int(least), size, size * 3 // 2, size * 2, size * 4]
    edges = [edge for place, edge in enumerate(edges) if place == 0 or edge > edges[place - 1]]
    sides = [min(image.width_px, image.height_px) for image in images if image.width_px]
    bars = []
    for low, high in zip(edges, [*edges[1:], None], strict=True):
        count = sum(low <= side and (high is None or side < high) for side in sides)
        label = f"{low} px and more" if high is None else f"{low}–{high - 1} px" if low else f"below {high} px"
        bars.append(Bar(label, count, count / max(1, len(sides))))
    return bars


def shape_bars(images: Sequence[AuditedImage]) -> list[Bar]:
    """How the images are shaped, wide ones first."""
    ratios = [image.width_px / image.height_px for image in images if image.height_px]
    counts = dict.fromkeys((name for _, name in _SHAPES), 0)
    for ratio in ratios:
        counts[next(name for least, name in _SHAPES if ratio >= least)] += 1
    return [Bar(name, count, count / max(1, len(ratios))) for name, count in counts.items()]


def bucket_bars(images: Sequence[AuditedImage], buckets: Mapping[str, int]) -> list[Bar]:
    """The trainer's buckets, fullest first, with how much of its pictures each cuts off."""
    total = max(1, sum(buckets.values()))
    cut: dict[str, list[float]] = {}
    for image in images:
        if image.bucket:
            cut.setdefault("{}x{}".format(*image.bucket), []).append(image.cut_share)
    bars = []
    for name, count in sorted(buckets.items(), key=lambda item: (-item[1], item[0])):
        shares = cut.get(name, [0.0])
        bars.append(Bar(name.replace("x", " × "), count, count / total, f"{100 * sum(shares) / len(shares):.0f} %"))
    return bars


class _Pictures:
    """Images by path, each with the class that draws it."""

    def __init__(self, result: AuditResult) -> None:
        self.classes = {path: f"t{number}" for number, path in enumerate(result.thumbnails)}
        self._images = {image.path: image for image in result.images}

    def section(self, finding: Finding, found: int) -> FindingSection:
        shown = () if finding.code in _SHOWN_OTHERWISE else finding.images
        pictures = [self._of(path, finding.code) for path in shown]
        unseen = finding.count - len(pictures) if shown else 0
        return _section(finding, heading(finding, found), pictures, unseen)

    def group(self, group: DuplicateGroup) -> GroupRow:
        first = self._images[group.images[0]]
        pictures = [self._of(first.path, remark="the largest")]
        others = [self._images[path] for path in group.images[1:_OPEN_AT_MOST]]
        pictures += [self._of(image.path, remark=_distance(first, image)) for image in others]
        return GroupRow(group, tuple(pictures))

    def quiet(self) -> FindingSection:
        """The images that no finding is about."""
        quiet = [image.path for image in self._images.values() if not image.findings]
        pictures = [self._of(path) for path in quiet if path in self.classes]
        nothing = Finding(code="", severity="note", count=len(quiet), images=(), text="", fix="")
        return _section(nothing, "", pictures, len(quiet) - len(pictures))

    def _of(self, path: str, code: str = "", *, remark: str = "") -> Picture:
        image = self._images.get(path)
        if image is None:
            return Picture("", one_line(path), "", remark)
        remark = remark or one_line(image.findings.get(code, ""))
        told = not image.width_px or remark.startswith(f"{image.width_px}×{image.height_px}")
        size = "" if told else f"{image.width_px} × {image.height_px}"
        return Picture(self.classes.get(path, ""), one_line(path), size, remark)


def heading(finding: Finding, found: int) -> str:
    """What a finding is about, without the files that the page shows below it."""
    about = CODES[finding.code].text if finding.code in CODES else ""
    of_all = "" if finding.code == "left-out" else f"of {found} "
    return f"{finding.count} {of_all}{about}" if about and finding.count else finding.text


def _section(finding: Finding, text: str, pictures: Sequence[Picture], unseen: int) -> FindingSection:
    files = tuple(picture for picture in pictures if not picture.thumbnail)
    drawn = tuple(picture for picture in pictures if picture.thumbnail)
    return FindingSection(finding, text, files, drawn[:_OPEN_AT_MOST], drawn[_OPEN_AT_MOST:], unseen)


def _distance(first: AuditedImage, other: AuditedImage) -> str:
    if first.sha256 == other.sha256:
        return "the same bytes"
    if not first.phash or not other.phash:
        return "alike"
    bits = (int(first.phash, 16) ^ int(other.phash, 16)).bit_count()
    return f"{bits} of 64 bits differ"


def _uri(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
