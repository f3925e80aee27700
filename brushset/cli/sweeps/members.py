"""The runs that a sweep asks for, each with its settings resolved; everything wrong with any of them is said at once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brushset.buckets import count_steps, share_batches
from brushset.cli.options import Options
from brushset.cli.runs import resolve_style
from brushset.errors import UsageError
from brushset.images import CAPTION_SUFFIX, source_digest
from brushset.manifest import run_identity
from brushset.paths import PROJECT
from brushset.prepare.holdout import count_heldout
from brushset.spec import StyleSpec
from brushset.stages.configure import choose_repeats
from brushset.sweeps.halving import rung_settings
from brushset.sweeps.space import Point, as_setting, short_value

_NOT_VARIED = {
    "executor.": "says where runs are done, and is no part of what they are; fix: --executor, or --set",
    "dataset.images": "is the style's; fix: --images, or a style of its own",
}


@dataclass(frozen=True)
class Member:
    """One run that is asked for. `settings` is what makes it differ, `label` the same for people; on a rung of a halving
    it trains a share of its epochs.
    """

    spec: StyleSpec
    engine_reason: str
    images: Mapping[str, str]
    settings: Point
    label: str
    rung: int = 0


def plan_members(options: Options, styles: Sequence[str], points: Sequence[Point], *, touch: bool) -> list[Member]:
    """A run for each style and point; of several that would be the same run only the first.

    Raises:
        UsageError: everything that is wrong with any of them, a line each.
    """
    wrong = _refusals(points)
    apart = dataclasses.replace(options, gpus=None)  # each GPU is for runs of its own, none is for all of them
    members: dict[str, Member] = {}
    digests: dict[Path, Mapping[str, str]] = {}
    for style in styles:
        for point in points if not wrong else ():
            try:
                spec, reason = resolve_style(style, with_settings(apart, point), touch=touch)
                _refuse_spread(spec)
            except UsageError as error:
                wrong += str(error).splitlines()
                continue
            folder = spec.images_dir(PROJECT)
            if folder not in digests:
                digests[folder] = source_digest(folder) if touch or folder.is_dir() else {}
            label = label_of(style if len(styles) > 1 else "", point) or style
            member = Member(spec, reason, digests[folder], point, label)
            members.setdefault(run_identity(spec, member.images), member)
    if wrong:
        raise UsageError.of_many(list(dict.fromkeys(wrong)))
    return list(members.values())


def at_rung(member: Member, rung: int, rungs: int) -> Member:
    """The same settings, trained as long as that rung does."""
    changes = {key.partition(".")[2]: value for key, value in rung_settings(member.spec.train, rung, rungs).items()}
    train = member.spec.train.model_copy(update=changes)
    return dataclasses.replace(member, spec=member.spec.model_copy(update={"train": train}), rung=rung)


def with_settings(options: Options, point: Mapping[str, Any]) -> Options:
    """The options with a point's settings said on top."""
    return dataclasses.replace(
        options, settings=[*options.settings, *(as_setting(key, value) for key, value in point.items())]
    )


def label_of(style: str, point: Point) -> str:
    """`network_dim=8 unet_lr=0.0001`."""
    words = [f"{key.rpartition('.')[2]}={short_value(value)}" for key, value in point.items()]
    return " ".join([style, *words] if style else words)


def planned_steps(member: Member) -> tuple[int, int]:
    """Optimizer steps and epochs, as far as file names tell: the audit may leave images out, and buckets add a few."""
    spec, found = member.spec, sum(not name.endswith(CAPTION_SUFFIX) for name in member.images)
    images = max(1, found - count_heldout(found, spec.dataset))
    repeats, _ = choose_repeats(spec.train, images)
    batches = math.ceil(images * repeats / spec.train.batch_size)
    return count_steps(spec.train, share_batches(batches, spec.train.processes))


def _refuse_spread(spec: StyleSpec) -> None:
    if spec.train.processes > 1 and spec.executor.use == "local":
        raise UsageError(
            f"{spec.name}: [train] processes = {spec.train.processes} spreads one run over several GPUs, and a sweep puts "
            "runs of its own on each; fix: --set train.processes=1"
        )


def _refusals(points: Sequence[Point]) -> list[str]:
    keys = dict.fromkeys(key for point in points for key in point)
    return [f"{key}: {why}" for key in keys for start, why in _NOT_VARIED.items() if key.startswith(start)]
