"""Rules on one subset of images, with all that reaches it: its own keys, its dataset's, [general] and the training TOML.

Read in v0.10.1's library/train_util.py (`DreamBoothDataset`, `BaseDataset.process_caption`, `make_buckets`).
"""

from __future__ import annotations

from brushset.kohya.check.options import default_of
from brushset.kohya.check.rule import Rule, Settings, needs, stops

RESIZERS = ("lanczos", "nearest", "bilinear", "linear", "bicubic", "cubic", "area")
_CUTS_CAPTIONS = ("shuffle_caption", "token_warmup_step", "caption_tag_dropout_rate")


def _sides(s: Settings) -> tuple[int, int] | None:
    """Width and height of the resolution; None where there is none that is one."""
    value = s["resolution"]
    if isinstance(value, str):
        parts = [part.strip() for part in value.split(",")]
        value = [int(part) for part in parts] if all(part.isdigit() for part in parts) else None
    if isinstance(value, int) and not isinstance(value, bool):
        return value, value
    if isinstance(value, list) and len(value) in (1, 2) and all(isinstance(side, int) for side in value):
        return value[0], value[-1]
    return None


def _span(s: Settings) -> tuple[int, int]:
    """Least and largest side of a bucket, made multiples of the steps as sd-scripts does."""
    step = max(1, s["bucket_reso_steps"])
    return s["min_bucket_reso"] - s["min_bucket_reso"] % step, s["max_bucket_reso"] + -s["max_bucket_reso"] % step


def _fits(s: Settings, least: int, most: int) -> bool:
    sides = _sides(s)
    return sides is None or (min(sides) >= least and max(sides) <= most)


def _idle_bound(key: str) -> Rule:
    """min_bucket_reso or max_bucket_reso under bucket_no_upscale, where the default would have done for its assertion."""

    def holds(s: Settings) -> bool:
        if not (s.on("enable_bucket") and s.on("bucket_no_upscale") and s.changed(key)):
            return False
        bounds = {name: s[name] for name in ("min_bucket_reso", "max_bucket_reso")} | {key: default_of(key)}
        return _fits(s, *bounds.values())

    return Rule(
        key, holds, f"{key} = {{{key}}} has no effect with bucket_no_upscale",
        "buckets are made to fit each image, which is only ever scaled down", "leave one of them out",
    )  # fmt: skip


def _without_buckets(key: str) -> Rule:
    return Rule(
        key, lambda s: s.changed(key) and not s.on("enable_bucket"),
        f"{key} = {{{key}}} has no effect without enable_bucket", "all images are cut to one size", "enable_bucket = true",
    )  # fmt: skip


SUBSET_RULES: tuple[Rule, ...] = (
    stops(
        "resolution", lambda s: s.on("enable_bucket") and not _fits(s, _span(s)[0], 1 << 30),
        "resolution = {resolution} is below min_bucket_reso = {min_bucket_reso}",
        "min_bucket_reso must be equal or less than resolution", "lower min_bucket_reso",
    ),
    stops(
        "resolution", lambda s: s.on("enable_bucket") and not _fits(s, 0, _span(s)[1]),
        "resolution = {resolution} is above max_bucket_reso = {max_bucket_reso}",
        "max_bucket_reso must be equal or greater than resolution", "raise max_bucket_reso",
    ),
    stops(
        "bucket_reso_steps", lambda s: s.on("enable_bucket") and s["bucket_reso_steps"] % 64 != 0,
        "bucket_reso_steps = {bucket_reso_steps} is not a multiple of 64",
        "train_network.py asserts it; sdxl_train_network.py takes multiples of 32", "bucket_reso_steps = 64", sd15_only=True,
    ),
    *(
        Rule(
            key, lambda s, key=key: s.on("enable_bucket") and s.changed(key)  # type: ignore[misc]
            and s[key] % s["bucket_reso_steps"] != 0 and not s.on("bucket_no_upscale"),
            f"{key} = {{{key}}} is not a multiple of bucket_reso_steps = {{bucket_reso_steps}}",
            f"it is rounded {way} to one, with a warning in the log", "a multiple",
        )
        for key, way in (("min_bucket_reso", "down"), ("max_bucket_reso", "up"))
    ),
    _idle_bound("min_bucket_reso"),
    _idle_bound("max_bucket_reso"),
    *map(_without_buckets, ("min_bucket_reso", "max_bucket_reso", "bucket_reso_steps", "bucket_no_upscale")),
    stops(
        "color_aug", lambda s: s.on("color_aug") and s.on("cache_latents", "cache_latents_to_disk"),
        "color_aug excludes cache_latents", "when caching latents, color_aug cannot be used", "leave one of them out",
    ),
    stops(
        "random_crop", lambda s: s.on("random_crop") and s.on("cache_latents", "cache_latents_to_disk"),
        "random_crop excludes cache_latents", "when caching latents, random_crop cannot be used", "leave one of them out",
    ),
    Rule(
        "face_crop_aug_range",
        lambda s: s.on("face_crop_aug_range") and s.on("cache_latents", "cache_latents_to_disk", "enable_bucket"),
        "face_crop_aug_range has no effect with cache_latents or enable_bucket",
        "faces are cut out of uncached, unbucketed images only", "leave it out",
    ),
    Rule(
        "keep_tokens", lambda s: s.changed("keep_tokens") and not s.on(*_CUTS_CAPTIONS),
        "keep_tokens = {keep_tokens} has no effect yet", "captions are neither shuffled nor cut", "", "harmless",
    ),
    Rule(
        "keep_tokens_separator", lambda s: s.on("keep_tokens_separator") and not s.on(*_CUTS_CAPTIONS),
        'keep_tokens_separator = "{keep_tokens_separator}" has no effect without shuffle_caption',
        "where it stands in a caption it stays there, and is trained as text", "shuffle_caption = true, or leave it out",
    ),
    needs("token_warmup_min", "token_warmup_step", severity="harmless"),
    Rule(
        "network_multiplier", lambda s: s.on("network_multiplier") and s["network_multiplier"] != 1.0,
        "network_multiplier = {network_multiplier} has no effect", "train_network.py never reads it", "leave it out",
    ),
    Rule(
        "resize_interpolation", lambda s: s.on("resize_interpolation") and s["resize_interpolation"] not in RESIZERS,
        'resize_interpolation = "{resize_interpolation}"' + f": expected one of {', '.join(RESIZERS)}",
        "sd-scripts stops", "lanczos",
    ),
)  # fmt: skip
