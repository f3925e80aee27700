"""Of the images and their captions: audit, preprocess, caption."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from brushset.records.base import Record

ImageVerdict = Literal["ok", "needs upscaling", "unusable"]
SetVerdict = Literal["ok", "duplicates", "needs upscaling", "too few", "unusable"]
Severity = Literal["stop", "warning", "note"]


class Measures(Record):
    """What was measured of one image, transparency laid over the style's background."""

    orientation: int = Field(description="EXIF orientation, 1 to 8; 1 is upright")
    alpha_share: float = Field(description="share of the pixels that are not fully opaque")
    sharpness: float = Field(description="variance of the Laplacian of luma (0-255) at an area of 256², never enlarged")
    mean_luma: float = Field(description="0 black to 1 white")
    contrast: float = Field(description="between the darkest and the lightest hundredth of the pixels, 0 to 1")
    black_share: float = Field(description="share of the pixels at luma 2 of 255 or below")
    white_share: float = Field(description="share of the pixels at luma 253 of 255 or above")
    margin: Literal["none", "ground", "frame"] = Field(
        description="plain margin: frame ends at a straight line (letterbox, mount), ground lies around a figure or vignette"
    )
    margins_px: tuple[int, int, int, int] = Field(description="left, top, right, bottom, as displayed")
    uniform: bool = Field(description="one colour all over")
    jpeg_quality: int | None = Field(description="1 to 100, by the quantisation tables; None for other formats")


class AuditedImage(Record):
    """One file of the user's folder. Sizes are as displayed, EXIF orientation applied; 0 where it cannot be read."""

    path: str = Field(description="relative to the images folder")
    sha256: str
    size_bytes: int
    format: str = Field(description="by content, such as PNG; empty where it cannot be read")
    mode: str
    width_px: int
    height_px: int
    verdict: ImageVerdict
    reason: str = ""
    phash: str = Field("", description="64-bit perceptual hash, 16 hex digits; empty where uniform or unreadable")
    group: int | None = Field(None, description="number of its group of duplicates, exact or near, where it has one")
    bucket: tuple[int, int] | None = Field(None, description="width and height it trains in; None where in none")
    enlarged_by: float = Field(1.0, description="to cover its bucket; 1 where it is large enough")
    cut_share: float = Field(0.0, description="share of the picture that the bucket cuts off")
    measures: Measures | None = Field(None, description="None where it cannot be read")
    findings: dict[str, str] = Field(default_factory=dict, description="code → what it means for this image")


class Finding(Record):
    """One kind of thing that the audit found, over all images. `code` is what dataset.accept takes."""

    code: str
    severity: Severity = Field(description="stop: the set is unusable for it; warning; note: nothing to be done")
    count: int = Field(description="images concerned; 0 where it is about the set")
    images: tuple[str, ...] = Field(description="the first 200 of them; each image lists all its own findings")
    text: str = Field(description="what was found, one line, without the fix")
    fix: str
    accepted: bool = Field(False, description="named by dataset.accept")

    @property
    def line(self) -> str:
        """Both on one line."""
        return f"{self.text}; fix: {self.fix}"


class DuplicateGroup(Record):
    """Images that show the same: connected by hash distances up to near_duplicate_distance, or by equal bytes."""

    number: int
    kind: Literal["exact", "near"] = Field(description="exact: all of them have the same bytes")
    images: tuple[str, ...] = Field(description="the one to keep first: the largest")
    widest: int = Field(description="largest distance of a member to the first, in bits of 64")


class Audit(Record):
    """What is in the images folder. audit/audit.json holds it with the groups and a line per image."""

    folder: str = Field(description="absolute path of the user's images")
    found: int = Field(description="files that claim to be images")
    ok: int
    needs_upscaling: int
    unusable: int
    verdict: SetVerdict
    reasons: tuple[str, ...] = Field(description="a line each: what was found, and the fix")
    formats: dict[str, int]
    min_side_px: int
    median_side_px: int
    max_side_px: int
    with_sidecar: int = Field(description="images that have a .txt caption beside them")
    different: int = Field(0, description="usable images, byte-equal copies counted once")
    findings: tuple[Finding, ...] = ()
    buckets: dict[str, int] = Field(
        default_factory=dict, description='"512x512" → images that train in it, width first, copies counted once'
    )
    exact_duplicates: int = Field(0, description="images that are byte-equal copies of another")
    near_duplicates: int = Field(0, description="images beyond the first of each group, byte-equal copies not counted")
    left_out: tuple[str, ...] = Field((), description="what was not looked at, pipes and such: path, reason and fix")


class PreparedImage(Record):
    """One image as the trainer will see it."""

    name: str = Field(description="file in images/, from the content's hash; heldout/… where it is not trained on")
    source: str = Field(description="relative to the user's folder")
    source_sha256: str
    width_px: int
    height_px: int
    upscaled_by: float = Field(description="1.0 where it was not")


class Prepared(Record):
    """The prepared images, sorted by name. `images` are trained on, `heldout` never are."""

    images: tuple[PreparedImage, ...]
    heldout: tuple[PreparedImage, ...] = ()
    seal: str = Field("", description="SHA-256 over the sorted source hashes of the held-out images")
    skipped: dict[str, str] = Field(description="source → reason")


class Caption(Record):
    """One caption: one line, trigger first."""

    image: str = Field(description="path below images/")
    text: str
    source: str = Field(description="sidecar, edited, or the captioner's name")
    said: str = Field("", description="what the source said, before style words went and the trigger came")
    stripped: tuple[str, ...] = Field((), description="style words that went; one that stood there twice is here twice")
    tokens: int = Field(0, description="of CLIP, as trained, without begin and end marks")


class CaptionFinding(Record):
    """Something about the captions that will be trained in another way than meant, or taught to no use."""

    level: Literal["error", "warning", "advice"]
    code: str
    text: str = Field(description="one line, with the fix where there is one")
    images: tuple[str, ...] = Field((), description="some of those it is about, paths below images/")


class Captions(Record):
    """All captions, in the order of the images; those of held-out images follow."""

    captioner: str
    trigger: str
    captions: tuple[Caption, ...]
    weights: str = Field("", description="what the captioner read: model and commit, or digest; empty where nothing")
    findings: tuple[CaptionFinding, ...] = ()
    token_limit: int = Field(75, description="CLIP tokens of a caption that are trained")
    kept_style_words: dict[str, int] = Field(
        default_factory=dict, description="style words that the user's own texts keep → how often"
    )
