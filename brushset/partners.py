"""Which adapters of other styles this one is mixed with: the newest of each style that was trained on the same base.

Looked up in the folder that holds this run; an adapter on another base is left out and named, since the two would
never act on the same weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from brushset.chosen import chosen_adapter
from brushset.errors import BrushsetError
from brushset.load import load_style
from brushset.paths import RunPaths, RunsDir
from brushset.records import Trained
from brushset.spec import StyleSpec
from brushset.stage_records import load_result


@dataclass(frozen=True)
class Partner:
    """A trained adapter of another style: the checkpoint and weight that were chosen of it, alone."""

    style: str
    trigger: str
    weights: Path
    sha256: str
    run: RunPaths
    weight: float
    epoch: int


@dataclass(frozen=True)
class Partners:
    """Those to be mixed with, sorted by style, and a line for each style left out."""

    chosen: tuple[Partner, ...]
    left_out: tuple[str, ...]


def find_partners(spec: StyleSpec, run: RunPaths) -> Partners:
    """The adapters to mix this run's with, at most `evaluate.max_pairs`. Reads records, touches nothing."""
    own = _trained(run)
    runs = RunsDir(run.root.parent.parent)
    chosen: list[Partner] = []
    left_out: list[str] = []
    for style in runs.styles():
        if style == spec.name or own is None:
            continue
        others = [(other, trained) for other in runs.runs_of(style) if (trained := _trained(other))]
        same_base = [pair for pair in others if pair[1].base_sha256 == own.base_sha256]
        if same_base and len(chosen) >= spec.evaluate.max_pairs:
            left_out.append(f"{style}: not mixed with, [evaluate] max_pairs = {spec.evaluate.max_pairs}")
        elif same_base:
            try:
                chosen.append(_partner(style, *same_base[-1]))
            except BrushsetError as error:  # its run may be of another version; that is no reason to fail this one
                left_out.append(f"{style}: not mixed with, since {str(error).splitlines()[0]}")
        elif others:
            left_out.append(f"{style}: not mixed with, since its adapter was trained on another base model")
    return Partners(tuple(chosen), tuple(left_out))


def partner_digests(spec: StyleSpec, run: RunPaths) -> list[list[str]]:
    """What evaluation takes from outside its run: style, trigger, SHA-256 and weight of every adapter it mixes with."""
    return [partner_digest(partner) for partner in find_partners(spec, run).chosen]


def partner_digest(partner: Partner) -> list[str]:
    """What a mix with this adapter depends on."""
    return [partner.style, partner.trigger, partner.sha256, f"{partner.weight:g}"]


def _partner(style: str, run: RunPaths, trained: Trained) -> Partner:
    spec, chosen = load_style(run.spec), chosen_adapter(run, trained)
    weight = spec.evaluate.weight if chosen.weight is None else chosen.weight
    return Partner(style, spec.trigger, chosen.file, chosen.sha256, run, weight, chosen.epoch)


def _trained(run: RunPaths) -> Trained | None:
    """What training left in a run, where the file is still there."""
    trained = load_result(run, "train", Trained)
    return trained if trained and (run.root / trained.weights).is_file() else None
