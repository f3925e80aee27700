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
    breaks: tuple[Literal["style", "fidelity", "diversity", "memorisation"], ...] = Field(
        (), description="the same in a word each: of what it breaks the bound"
    )
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
    meaningful: bool = Field(description="nothing made up took part; that much may still be missing")
    encoder: str = Field("", description="that style was measured by")
    measured_by: dict[str, str] = Field(
        {}, description="each number of a candidate → the extractor that it was measured by, with its weights' hash"
    )
    candidates: tuple[Candidate, ...] = ()
    reported: Candidate | None = Field(
        None, description="the chosen one on the prompts that it was not chosen by: what to expect of it"
    )
    words: Candidate | None = Field(None, description="base + style words on the same prompts: what has to be beaten")
    bounds: dict[str, float] = Field({}, description="by the names of [evaluate]")
    chosen_on: tuple[str, ...] = Field((), description="prompts")
    reported_on: tuple[str, ...] = ()
    shown_prompts: tuple[str, ...] = Field((), description="of the places that `Candidate.samples` show")
    base_samples: tuple[str, ...] = Field((), description="the base's images of those places, paths in the run")
    grid: str = Field("", description="a sheet of epochs × weights at one place, path in the run; empty where none is")
    seeds: tuple[int, ...] = ()
    losses: tuple[EpochLoss, ...] = ()
    images: int = Field(0, description="that were generated")
    seconds: float = Field(0.0, description="that it took")
    notes: tuple[str, ...] = ()

    def picked(self) -> Candidate | None:
        """The chosen one among the candidates, as measured last on the prompts that it was chosen by."""
        chosen = (self.epoch, self.weight, self.weights)
        found = [each for each in self.candidates if (each.epoch, each.weight, each.weights) == chosen]
        return max(found, key=lambda each: each.round, default=None)


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


class Prediction(Record):
    """How much two styles were expected to get in each other's way, before any image was made: brushset.lora.conflict and
    brushset.generation.additivity. None where it was not computed.
    """

    weights_cosine: float | None = Field(None, description="of ΔW of both: 1 the same, -1 one undoes the other")
    effect_cosine: float | None = Field(None, description="of what each does to the noise prediction")
    additivity: float | None = Field(None, description="share of what both do together that is not the sum; 0 is best")
    kept: dict[str, float] = Field({}, description="style → how far both together go its way; 1 as far as it alone")
    note: str = ""


class MixChoice(Record):
    """What is advised for a pair or triple: weights, method, why; and what the weights predicted of the conflict."""

    styles: tuple[str, ...]
    chosen: MixCandidate
    decided_by: Literal["retention", "default"]
    reason: str
    meaningful: bool
    candidates: tuple[MixCandidate, ...] = ()
    reported: MixCandidate | None = Field(
        None,
        description="the chosen one on the prompts that it was not chosen by; None where there are too few of them",
    )
    as_sum: MixCandidate | None = Field(
        None, description="the best weighted sum, by the same rule: for UIs, which know no other method"
    )
    encoder: str = Field("", description="that style was measured by")
    predicted: Prediction | None = Field(None, description="of a pair, at its most even weights")
    adapters: dict[str, str] = Field({}, description="style → SHA-256 of the file that was mixed")
