"""What was chosen, and why: the checkpoint and its weight, and how styles are best mixed."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from brushset.records.base import Record


class Estimate(Record):
    """A number with its 95 % interval; None where it was not measured, with the reason in `note`."""

    value: float | None
    low: float | None = None
    high: float | None = None
    note: str = ""


class Candidate(Record):
    """One checkpoint at one weight, as it was measured last: on few prompts where it dropped out, on all where it led."""

    weights: str = Field(description="path in the run")
    epoch: int
    weight: float
    round: int = Field(description="of screening, from 1, in which these numbers were taken")
    images: int
    retention: Estimate = Field(description="ρ of the style, by `Choice.encoder`: what is maximised")
    fidelity: Estimate = Field(description="CLIP score less that of the base, same prompts and seeds")
    diversity: Estimate = Field(description="by the base's")
    memorisation: Estimate = Field(description="likeness to images trained on less that to held-out ones")
    feasible: bool | None = Field(description="within all bounds; None where one of them could not be measured")
    reasons: tuple[str, ...] = Field((), description="which bounds it breaks or which could not be measured")
    on_front: bool = Field(False, description="no other of its round keeps more of the style and of the prompt")
    samples: tuple[str, ...] = Field((), description="images that are kept of it, paths in the run, one a place shown")


class EpochLoss(Record):
    """The loss of a checkpoint on images never trained on, and on as many that were."""

    epoch: int
    held_out: float
    trained: float | None = None


class Choice(Record):
    """Which checkpoint, at which weight, and the sentence that says why. `decided_by` "default": nothing could be measured
    that means something, so it is the last checkpoint at [evaluate] weight, or the one that validation chose.
    """

    weights: str = Field(description="path in the run")
    weights_sha256: str
    epoch: int
    weight: float
    decided_by: Literal["retention", "held-out loss", "default"]
    feasible: bool = Field(description="false: no candidate is within all bounds, and this is the knee of the front")
    reason: str
    meaningful: bool
    encoder: str = Field("", description="that style was measured by")
    candidates: tuple[Candidate, ...] = ()
    reported: Candidate | None = Field(
        None, description="the chosen one on the prompts that it was not chosen by: what to expect of it"
    )
    words: Candidate | None = Field(None, description="base + style words on the same prompts: what has to be beaten")
    bounds: dict[str, float] = Field({}, description="by the names of [evaluate]")
    chosen_on: tuple[str, ...] = Field((), description="prompts")
    reported_on: tuple[str, ...] = ()
    shown_prompts: tuple[str, ...] = Field((), description="of the places that `Candidate.samples` show")
    seeds: tuple[int, ...] = ()
    losses: tuple[EpochLoss, ...] = ()
    images: int = Field(0, description="that were generated")
    seconds: float = Field(0.0, description="that it took")
    notes: tuple[str, ...] = ()


class MixCandidate(Record):
    """One way to mix styles. `mix` is style → weight; `method` a name of brushset.lora.compose.METHODS."""

    cell: str
    mix: dict[str, float]
    method: str
    retention: dict[str, Estimate] = Field(description="of each style, against it alone at weight 1")
    least: Estimate = Field(description="retention of the style of which least is left: what is maximised")
    balance: Estimate
    fidelity: Estimate
    feasible: bool | None
    reasons: tuple[str, ...] = ()


class MixChoice(Record):
    """What is advised for a pair or triple: weights, method, why; and what the weights predicted of the conflict."""

    styles: tuple[str, ...]
    chosen: MixCandidate
    decided_by: Literal["retention", "default"]
    reason: str
    meaningful: bool
    candidates: tuple[MixCandidate, ...] = ()
