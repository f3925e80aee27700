"""What is found of one image: what it measures against the thresholds of [dataset], and where it will train.

Whether an image is large enough is asked of its bucket, not of its shorter side: 256×2048 covers a bucket of 256×1024
as it is. With bucket_no_upscale nothing is enlarged; there a bucket far below the training size is what is too small.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from typing import Any

from brushset.audit.measure import Measured
from brushset.audit.settings import AuditSettings
from brushset.buckets import Placement, Size, settle
from brushset.errors import InputError
from brushset.records import AuditedImage, ImageVerdict, Measures
from brushset.spec import DatasetSection

# Findings for which an image is not trained on.
STOPS = ("unreadable", "too-small", "no-bucket")
# Scaled down by so much in training, the blocks of a JPEG are averaged away.
_BLOCKS_VANISH = 2.0
# One set for all records: of its own, each would take more memory than what it holds. What is put in was made here.
_ALL_FIELDS = set(AuditedImage.model_fields)
_ALL_MEASURES = set(Measures.model_fields)


@dataclass
class Placer:
    """Finds the bucket of each size; sets have few sizes, and each is looked up once."""

    settings: AuditSettings
    known: dict[Size, Placement | str] = field(default_factory=dict)

    def place(self, size: Size) -> Placement | str:
        """The placement, or why there is none."""
        if size not in self.known:
            try:
                self.known[size] = settle(size, self.settings.rules)
            except InputError as error:
                self.known[size] = str(error).partition(": ")[2].partition(";")[0]
        return self.known[size]


def judge_image(name: str, measured: Measured, placer: Placer) -> AuditedImage:
    """The record of one image, before it is held against the others of its set."""
    accepted = placer.settings.dataset.accept
    if measured.measures is None:
        return AuditedImage(
            path=name, sha256=measured.sha256, size_bytes=measured.size_bytes, format="", mode="", width_px=0,
            height_px=0, verdict="unusable", reason=measured.error,
            findings={"unreadable": f"{measured.error}; fix: {measured.fix}"},
        )  # fmt: skip
    size = (measured.width_px, measured.height_px)
    place = placer.place(size)
    measures = Measures.model_construct(_ALL_MEASURES, **measured.measures)
    findings = _size_findings(size, place, placer.settings) | _content_findings(
        measured, measures, size, placer.settings.dataset
    )
    verdict, reason = _verdict(findings, accepted)
    placed = {} if isinstance(place, str) else _placed(size, place)
    return AuditedImage.model_construct(
        _ALL_FIELDS, path=name, sha256=measured.sha256, size_bytes=measured.size_bytes,
        format=sys.intern(measured.format), mode=sys.intern(measured.mode), width_px=size[0], height_px=size[1],
        verdict=verdict, reason=reason, phash=measured.phash, measures=measures, findings=findings, **placed,
    )  # fmt: skip


def _placed(size: Size, place: Placement) -> dict[str, Any]:
    return {
        "bucket": place.bucket,
        "enlarged_by": round(_enlarged_by(size, place), 4),
        "cut_share": round(_cut_share(place), 4),
    }


def _verdict(findings: dict[str, str], accepted: tuple[str, ...]) -> tuple[ImageVerdict, str]:
    stops = [code for code in STOPS if code in findings]
    if "too-small" in accepted and stops == ["too-small"]:
        return "needs upscaling", f"{findings['too-small']}; accepted"
    if stops:
        return "unusable", findings[stops[0]]
    if "needs-upscaling" in findings:
        return "needs upscaling", findings["needs-upscaling"]
    return "ok", ""


def _size_findings(size: Size, place: Placement | str, settings: AuditSettings) -> dict[str, str]:
    if isinstance(place, str):
        return {"no-bucket": place}
    dataset, shown = settings.dataset, f"{size[0]}×{size[1]} px"
    limit = dataset.max_upscale if dataset.upscaler == "lanczos" else dataset.max_upscale_model
    bucket = f"{place.bucket[0]}×{place.bucket[1]}"
    factor = _enlarged_by(size, place)
    below = dataset.resolution / math.sqrt(place.resized[0] * place.resized[1])
    found = {}
    if factor > limit:
        found["too-small"] = f"{shown} would be enlarged {factor:.1f} times to {bucket}"
    elif settings.rules.no_upscale and below > limit:
        found["too-small"] = f"{shown} is {below:.1f} times below the training size"
    elif factor > 1:
        found["needs-upscaling"] = f"{shown}, enlarged {factor:.2f} times to {bucket}"
    if _cut_share(place) > dataset.max_cut_share:
        found["cropped"] = f"{shown}: {bucket} cuts {_cut_share(place):.0%} off"
    return found


def _content_findings(measured: Measured, measures: Measures, size: Size, dataset: DatasetSection) -> dict[str, str]:
    found = {"uniform": "one colour all over"} if measures.uniform else _look_findings(measures, size, dataset)
    scale = math.sqrt(size[0] * size[1]) / dataset.resolution
    quality = measures.jpeg_quality
    if quality is not None and quality < dataset.min_jpeg_quality and scale < _BLOCKS_VANISH:
        found["jpeg-artefacts"] = f"quality {quality}"
    if measured.guesses:
        found["guessed"] = "; ".join(measured.guesses)
    if measured.conversions:
        found["converted"] = "; ".join(measured.conversions)
    return found


def _look_findings(measures: Measures, size: Size, dataset: DatasetSection) -> dict[str, str]:
    """What an image that shows something looks like."""
    found = {}
    if measures.sharpness < dataset.min_sharpness:
        found["blurry"] = f"sharpness {measures.sharpness:.0f}"
    if measures.contrast < dataset.min_contrast:
        found["washed-out"] = f"contrast {measures.contrast:.2f}"
    if measures.mean_luma < dataset.min_mean_luma:
        found["dark"] = f"mean brightness {measures.mean_luma:.2f}"
    share = _margin_share(measures, size)
    if measures.margin == "frame" and share > dataset.max_frame_share:
        found["border"] = f"{share:.0%} of it"
    return found


def _margin_share(measures: Measures, size: Size) -> float:
    left, top, right, bottom = measures.margins_px
    return 1 - (size[0] - left - right) * (size[1] - top - bottom) / (size[0] * size[1])


def _enlarged_by(size: Size, place: Placement) -> float:
    """1.0 where it is large enough; rounding to whole pixels is no enlargement."""
    if place.resized[0] - size[0] < 1 and place.resized[1] - size[1] < 1:
        return 1.0
    return max(place.resized[0] / size[0], place.resized[1] / size[1])


def _cut_share(place: Placement) -> float:
    return 1 - place.bucket[0] * place.bucket[1] / (place.resized[0] * place.resized[1])
