"""The findings that an audit can have: what each is called, and what to do about it. `dataset.accept` takes the names."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from brushset.errors import UsageError
from brushset.records import Severity
from brushset.spec import DatasetSection

_LARGER = "find larger originals, or remove them"
_KEEP = "keep the largest of each group, remove the others"
_LOOK = "look at them; remove what is not meant"


@dataclass(frozen=True)
class Code:
    """`text` says what the images have in common, after their number; `limit` names the setting that decides;
    `severity` is the highest it can have.
    """

    text: str
    fix: str
    severity: Severity
    limit: str = ""


# In the order in which they are told, what stops the run first.
CODES = {
    "unreadable": Code("cannot be read", "replace or remove them", "stop"),
    "too-small": Code("are too small", _LARGER, "stop", "max_upscale"),
    "no-bucket": Code("fit into no bucket", "crop or remove them, or change [train] bucket_no_upscale", "stop"),
    "too-few": Code(
        "different usable images", "add images, or expect a style that is learned less surely", "warning", "min_images"
    ),
    "needs-upscaling": Code(
        "are smaller than their buckets and will be upscaled", "use larger originals if any", "warning"
    ),
    "near-duplicates": Code("show nearly the same as another", _KEEP, "warning", "near_duplicate_distance"),
    "exact-duplicates": Code("are byte-equal copies; each picture is used once", "none needed", "note"),
    "uniform": Code("show nothing", "remove them", "warning"),
    "blurry": Code(
        "are blurry", "find sharper ones, or remove them: blur is learned as style", "warning", "min_sharpness"
    ),
    "washed-out": Code("are washed out", _LOOK, "warning", "min_contrast"),
    "dark": Code("are nearly black", _LOOK, "warning", "min_mean_luma"),
    "border": Code(
        "have a frame or letterbox", "crop it off: it is learned as part of the style", "warning", "max_frame_share"
    ),
    "jpeg-artefacts": Code(
        "are strongly compressed", "find better originals: blocks are learned as style", "warning", "min_jpeg_quality"
    ),
    "cropped": Code("lose much to their bucket", "crop them yourself to what matters", "warning", "max_cut_share"),
    "outlier": Code("differ from the rest of the set", _LOOK, "note", "outlier_deviations"),
    "guessed": Code("were decoded with a guess", "save them as sRGB PNG", "note"),
    "converted": Code("are converted", "none needed", "note"),
    "ground": Code(
        "stand on plain ground, which is learned with them",
        "none needed where that is the style; else crop them",
        "note",
    ),
    "captions-missing": Code(
        "have no caption beside them while others do", "write them, or leave them to the captioner", "note"
    ),
    "left-out": Code("files were left out", "see each", "note"),
}


def limit_of(code: str, dataset: DatasetSection) -> str:
    """The setting that decides, with its value, as it stands in a style file; empty where there is none."""
    name = CODES[code].limit
    if name == "max_upscale" and dataset.upscaler != "lanczos":
        name = "max_upscale_model"
    return f"[dataset] {name} = {getattr(dataset, name):g}" if name else ""


def check_accepted(dataset: DatasetSection) -> None:
    """Whether all that `accept` names exists.

    Raises:
        UsageError: a code is not known.
    """
    findings = []
    for name in dataset.accept:
        if name not in CODES:
            near = difflib.get_close_matches(name, CODES, n=1)
            hint = f'did you mean "{near[0]}"? ' if near else ""
            findings.append(f'[dataset] accept: no finding "{name}"; {hint}findings: {", ".join(CODES)}')
    if findings:
        raise UsageError.of_many(findings)
