"""Which bucket does an image train in, and how is it fitted there?

Images of one batch share a shape, so each image goes to the bucket whose aspect ratio is nearest to its own, is scaled
to cover the bucket and cut at the centre. The rules, rounding included, are those of sd-scripts
(`library.model_util.make_bucket_resolutions`, `library.train_util.BucketManager`), so that both engines, and the
arithmetic of a run's length, see the same buckets: tests/test_buckets.py compares them on hundreds of random sizes.
All sizes are (width, height) in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from brushset.errors import InputError, UsageError
from brushset.spec import StyleSpec, TrainSection

Size = tuple[int, int]


@dataclass(frozen=True)
class Placement:
    """How one image is fitted: scaled to `resized`, then cut to `bucket`, the cut's upper left corner at `crop`."""

    bucket: Size
    resized: Size
    crop: Size
    aspect_error: float = field(compare=False)


@dataclass(frozen=True)
class BucketPlan:
    """Where all images go. `counts` is sorted by size and holds the buckets in use, repeats not counted."""

    assignment: dict[str, Size]
    counts: dict[Size, int]
    placements: dict[str, Placement]

    @property
    def mean_aspect_error(self) -> float:
        """Mean of |bucket's width/height - image's width/height|, which sd-scripts writes into the metadata."""
        errors = [abs(place.aspect_error) for place in self.placements.values()]
        return sum(errors) / len(errors) if errors else 0.0


@dataclass(frozen=True)
class BucketRules:
    """The dataset TOML's bucket keys.

    Attributes:
        resolution: square root of a bucket's largest area.
        min_reso: shortest side of a bucket; rounded down to a multiple of `step`; not used with `no_upscale`.
        max_reso: longest side of a bucket; rounded up to a multiple of `step`; not used with `no_upscale`.
        step: sides of buckets are multiples of it.
        no_upscale: buckets are made to fit the images, which are only ever scaled down.
        enable: false puts all images into one square bucket of `resolution`.
    """

    resolution: int
    min_reso: int
    max_reso: int
    step: int
    no_upscale: bool
    enable: bool

    @classmethod
    def of(cls, spec: StyleSpec) -> BucketRules:
        """The rules under which a style is trained."""
        train = spec.train
        return cls(
            spec.dataset.resolution,
            train.min_bucket_reso,
            train.max_bucket_reso,
            train.bucket_reso_steps,
            train.bucket_no_upscale,
            train.enable_bucket,
        )


# What of a spec decides the buckets: a stage that asks for them reads these.
BUCKET_KEYS = (
    "dataset.resolution", "train.min_bucket_reso", "train.max_bucket_reso", "train.bucket_reso_steps",
    "train.bucket_no_upscale", "train.enable_bucket",
)  # fmt: skip


def plan_buckets(sizes: Mapping[str, Size], rules: BucketRules) -> BucketPlan:
    """Assigns every image, by name, to its bucket.

    Raises:
        UsageError: `resolution` is outside of min_reso … max_reso.
        InputError: an image is too small for any bucket; every such image is named.
    """
    resolution, step = rules.resolution, rules.step
    if rules.enable:
        min_reso, max_reso = rules.min_reso - rules.min_reso % step, rules.max_reso + -rules.max_reso % step
        if not min_reso <= resolution <= max_reso:
            raise UsageError(
                f"min_bucket_reso {min_reso} ≤ resolution {resolution} ≤ max_bucket_reso {max_reso} does not hold"
            )
    if not rules.enable:
        known = [(resolution, resolution)]
    elif rules.no_upscale:
        known = []
    else:
        known = list_buckets(resolution, min_reso=min_reso, max_reso=max_reso, step=step)
    placements, findings = {}, []
    for name, size in sizes.items():
        if min(size) < 1 or (not known and min(size) < step):
            findings.append(
                f"{name}: {size[0]}x{size[1]} px has a side below {step} px; set bucket_no_upscale = false, or remove it"
            )
            continue
        placements[name] = _cover(size, known) if known else _shrink(size, resolution * resolution, step)
        if 0 in placements[name].bucket:
            findings.append(f"{name}: {size[0]}x{size[1]} px is too narrow for a bucket; remove or crop it")
    if findings:
        raise InputError.of_many(findings)
    assignment = {name: place.bucket for name, place in placements.items()}
    buckets = list(assignment.values())
    return BucketPlan(assignment, {bucket: buckets.count(bucket) for bucket in sorted(set(buckets))}, placements)


def settle(size: Size, rules: BucketRules) -> Placement:
    """The placement of an image once it has been scaled as the trainer would scale it: at this `resized` the trainer
    scales no more, and cuts to the same bucket.

    Rounding to whole pixels breaks that for about one size in a thousand: where the scaled image is as near to a second
    bucket's aspect ratio, or lies a row above the area that `no_upscale` scales down to (1649×2085 becomes 456×576,
    which would become 405×512). One or two pixels less on the side that is cut anyway settle all of these.

    Raises:
        UsageError: see plan_buckets.
        InputError: the image is too small, or too narrow, for any bucket.
    """
    place = _placement(size, rules)
    width, height = place.resized
    for less in ((0, 0), (1, 0), (0, 1), (2, 0), (0, 2)):
        candidate = (width - less[0], height - less[1])
        if candidate[0] < place.bucket[0] or candidate[1] < place.bucket[1]:
            continue
        again = _placement(candidate, rules)
        if (again.bucket, again.resized) == (place.bucket, candidate):
            return again
    return settle(place.resized, rules)  # smaller each time


def _placement(size: Size, rules: BucketRules) -> Placement:
    return plan_buckets({"image": size}, rules).placements["image"]


def batches_per_epoch(plan: BucketPlan, *, repeats: int, batch_size: int) -> int:
    """Batches that one epoch takes. A batch never mixes buckets, and each bucket's last, short batch is trained."""
    return count_batches(plan.counts.values(), repeats=repeats, batch_size=batch_size)


def count_batches(counts: Iterable[int], *, repeats: int, batch_size: int) -> int:
    """Batches of buckets that hold so many images each."""
    return sum(math.ceil(count * repeats / batch_size) for count in counts)


def share_batches(batches: int, processes: int) -> int:
    """Batches that each process takes in an epoch: accelerate deals them out in turn and fills the last round up with
    batches from the front, so that all processes take as many steps.
    """
    return math.ceil(batches / processes)


def count_steps(train: TrainSection, batches: int) -> tuple[int, int]:
    """Optimizer steps and epochs of a training with so many batches an epoch and process; the last epoch may be cut short."""
    per_epoch = math.ceil(batches / train.gradient_accumulation_steps)
    if train.max_steps is None:
        return train.epochs * per_epoch, train.epochs
    return train.max_steps, math.ceil(train.max_steps / per_epoch)


def list_buckets(resolution: int, *, min_reso: int, max_reso: int, step: int) -> list[Size]:
    """All buckets of an area up to resolution², sorted; the square one is always among them."""
    area = resolution * resolution
    square = int(math.sqrt(area) // step) * step
    found = {(square, square)}
    for width in range(min_reso, max_reso + 1, step):
        height = min(max_reso, area // width // step * step)
        if height >= min_reso:
            found |= {(width, height), (height, width)}
    return sorted(found)


def _cover(size: Size, known: list[Size]) -> Placement:
    """The known bucket of the nearest aspect ratio (the first of equals), and the size that just covers it."""
    width, height = size
    aspect = width / height
    bucket = size if size in known else min(known, key=lambda each: abs(each[0] / each[1] - aspect))
    scale = bucket[1] / height if aspect > bucket[0] / bucket[1] else bucket[0] / width
    return _place(size, bucket, (int(width * scale + 0.5), int(height * scale + 0.5)))


def _shrink(size: Size, area: int, step: int) -> Placement:
    """A bucket made for the image: its size, scaled down to `area` where it is larger, cut to multiples of `step`."""
    width, height = size
    resized = size
    if width * height > area:
        aspect = width / height
        wide = math.sqrt(area * aspect)
        by_width, by_height = _round_down(wide, step), _round_down(area / wide, step)
        resized = _nearer_aspect(aspect, by_width, by_height, step)
    return _place(size, (resized[0] - resized[0] % step, resized[1] - resized[1] % step), resized)


def _nearer_aspect(aspect: float, by_width: int, by_height: int, step: int) -> Size:
    """Of the two sizes that have one side a multiple of `step`, the one whose bucket is nearer to the aspect ratio;
    (0, 0) where one of them has no bucket, which sd-scripts divides by.
    """
    height, width = _round_down(by_width / aspect, step), _round_down(by_height * aspect, step)
    if not height or not by_height:
        return 0, 0
    if abs(by_width / height - aspect) < abs(width / by_height - aspect):
        return by_width, int(by_width / aspect + 0.5)
    return int(by_height * aspect + 0.5), by_height


def _round_down(length: float, step: int) -> int:
    rounded = int(length + 0.5)
    return rounded - rounded % step


def _place(size: Size, bucket: Size, resized: Size) -> Placement:
    """Centre cut; the aspect error is infinite where there is no bucket."""
    crop = (max(resized[0] - bucket[0], 0) // 2, max(resized[1] - bucket[1], 0) // 2)
    error = bucket[0] / bucket[1] - size[0] / size[1] if bucket[1] else math.inf
    return Placement(bucket, resized, crop, error)
