"""Of what came out: convert, evaluate, export, report."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from brushset.records.base import Record
from brushset.records.choice import Estimate, MixChoice


class Adapter(Record):
    """The diffusers form, and the proof that it equals the file as trained."""

    path: str
    modules: int
    max_relative_error: float = Field(description="largest ‖ΔW − ΔW'‖ / ‖ΔW‖ over all modules")


class Score(Record):
    """One number of one grid cell; None where it was not measured, with the reason in `note`."""

    metric: str
    cell: str = Field(description='a cell\'s name; or "the run", "references against one another", "cartoon + anime"')
    value: float | None
    n: int = Field(description="generated images; of scores of the references alone, references")
    higher_is_better: bool | None = Field(description="None: neither way is better")
    extractor: str
    meaningful: bool = Field(
        description="false where any model that took part is made up, and where nothing was measured"
    )
    note: str = ""
    low: float | None = Field(None, description="of the 95 % interval; None where there is none, as `interval` says")
    high: float | None = None
    interval: str = Field("", description='how it was made, "bootstrap over 50 prompts", or why there is none')
    weights_sha256: str = Field("", description="of the extractor's weights; empty where it has none")

    @property
    def direction(self) -> Literal["higher", "lower", "neither"]:
        """Which way is better."""
        if self.higher_is_better is None:
            return "neither"
        return "higher" if self.higher_is_better else "lower"


class Matrix(Record):
    """Numbers of every row with every column: a confusion matrix, or what mixes leave of each style."""

    name: str = Field(description='"confusion_csd", "mix_retention_csd", "mix_interference_csd"')
    rows: tuple[str, ...] = Field(description="cells")
    columns: tuple[str, ...] = Field(description="styles, or classes")
    entries: tuple[tuple[Estimate, ...], ...]
    extractor: str
    meaningful: bool
    note: str = ""


class NearPair(Record):
    """A generated image and the training image that is most like it."""

    cell: str
    image: str = Field(description="path in the run")
    trained: str = Field(description="path in the run")
    cosine: float
    bits: int | None = Field(description="of 64 in which their dHashes differ")
    copied: bool = Field(description="beyond the threshold of `copies` or `near_copies`")
    extractor: str
    meaningful: bool


CellRole = Literal["base", "words", "alone", "no trigger", "wrong trigger", "mix"]


class Cell(Record):
    """Images made with one mix of adapters over the whole grid of prompts × seeds. `role` says what it is compared as."""

    name: str = Field(description='"base", "cartoon 0.8", "cartoon 0.5 + anime 0.5"')
    mix: dict[str, float]
    images: tuple[str, ...]
    role: CellRole = "mix"
    method: str = Field("weighted", description="how adapters are composed: a name of brushset.lora.compose.METHODS")


class EvalReport(Record):
    """The grid and its scores. eval/scores.json holds the same."""

    cells: tuple[Cell, ...] = Field(description="those shown side by side: baselines, the adapter alone, the mixes")
    scores: tuple[Score, ...]
    grid: str
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    meaningful: bool
    notes: tuple[str, ...]
    more_cells: tuple[Cell, ...] = Field((), description="those that are only measured: other weights, other triggers")
    matrices: tuple[Matrix, ...] = ()
    nearest: tuple[NearPair, ...] = ()
    mix_choices: tuple[MixChoice, ...] = Field((), description="what is advised for each pair and triple")


class Package(Record):
    """One UI's folder."""

    target: str
    folder: str
    files: tuple[str, ...]
    install: str = Field(description="where to drop it, one line")


class Exports(Record):
    """The packages made."""

    packages: tuple[Package, ...]
    trigger: str
    weight: float
    weights: str = Field("", description="the checkpoint that packages hold, path in the run")
    weights_sha256: str = ""
    epoch: int = 0
    reason: str = Field("", description="why this checkpoint and this weight")
    preview: str = Field("", description="the picture that stands for the style, path in the run")


class Report(Record):
    """The page."""

    path: str
    verdict: str
