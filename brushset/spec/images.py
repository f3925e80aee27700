"""[base] and [dataset]: what is trained on, and which model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from brushset.spec.section import Names, Px, Section, Share

DEFAULT_BASE = "stable-diffusion-v1-5/stable-diffusion-v1-5"


class BaseSection(Section):
    """The model that adapters are trained on."""

    model: str = Field(
        DEFAULT_BASE, description="HF id, .safetensors checkpoint, diffusers folder, random:sd15 or random:tiny"
    )
    revision: str | None = Field(None, description="commit or tag of an HF id")


class DatasetSection(Section):
    """The images, and what they must be."""

    images: str | None = Field(None, description="folder of images; relative to the project; default datasets/<style>")
    resolution: Px = Field(512, description="training size: the square root of a bucket's area, in pixels")
    min_images: int = Field(80, ge=1, description="fewer is reported as too few; 80-100 are advised for a style")
    max_upscale: float = Field(
        2.0, ge=1, le=8, description="an image that must be enlarged more is unusable: the detail would be invented"
    )
    upscaler: str = Field(
        "lanczos", description="or the path of a super-resolution model (.safetensors) that spandrel knows"
    )
    max_upscale_model: float = Field(4.0, ge=1, le=16, description="the limit where upscaler is a model")
    max_megapixels: float = Field(64.0, gt=0, le=89, description="larger images are refused before they are decoded")
    background: str = Field(
        "#ffffff", pattern=r"^#[0-9a-fA-F]{6}$", description="what shows through transparent pixels"
    )
    format: Literal["png", "jpeg"] = Field(
        "png", description="prepared images; jpeg is quality 95, a quarter of the size"
    )
    crop: Literal["none", "centre", "smart"] = Field(
        "none", description="cut to the bucket here; none leaves it to the trainer, which cuts at the centre"
    )
    near_duplicate_distance: int = Field(
        6, ge=0, le=16, description="images whose 64-bit perceptual hashes differ in at most so many bits are grouped"
    )
    max_duplicate_share: Share = Field(
        0.1, description="a set of which more are near-duplicates of another is told so: what repeats is learned first"
    )
    max_unusable_share: Share = Field(
        0.5, description="a set of which more cannot be used stops the run: it is not the set that was meant"
    )
    max_cut_share: Share = Field(
        0.25, description="an image of which its bucket cuts off more is named: a third of the subject may be lost"
    )
    max_frame_share: Share = Field(
        0.2, description="an image of which a frame or letterbox takes more is named: bars are learned as style"
    )
    min_sharpness: float = Field(
        50.0,
        ge=0,
        description="variance of the Laplacian at an area of 256²; less is blurry: scans, paintings and photographs have "
        "84 to 14,000, blurred by 5 pixels of 512 at most 34",
    )
    min_contrast: float = Field(
        0.15, ge=0, le=1, description="between the darkest and lightest hundredth of the pixels; less is washed out"
    )
    min_mean_luma: float = Field(0.06, ge=0, le=1, description="darker images are named: the style cannot be seen")
    min_jpeg_quality: int = Field(
        50, ge=1, le=100, description="worse JPEGs are named where they are not scaled down: blocks are learned"
    )
    outlier_deviations: float = Field(
        5.0, gt=0, description="robust standard deviations (of the median) at which an image differs from its set"
    )
    accept: Names = Field(
        (), description="findings of the audit, by code, that shall not make an image or set unusable"
    )
    holdout: Share = Field(0.1, description="share of the images that is never trained on and used by evaluation")
    holdout_from: int = Field(80, ge=2, description="fewer usable images than this are all trained on")
