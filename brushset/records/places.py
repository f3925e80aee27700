"""What was measured of each single image, and how two runs differ: what `compare` resamples, and what names the best
and the worst sample.
"""

from __future__ import annotations

from pydantic import Field

from brushset.records.base import Record
from brushset.records.choice import Estimate


class PlaceMeasure(Record):
    """One measure of every place (a prompt with a seed) in every cell."""

    extractor: str
    weights_sha256: str = ""
    meaningful: bool = Field(description="false where any model that took part is made up")
    level: float | None = Field(None, description="of style: how alike the references are to each other")
    cells: dict[str, tuple[float, ...]] = Field(description="a cell's name → a number a place")


class PlaceValues(Record):
    """eval/values.json: measures by name ("clip_score", "style_similarity_csd", "memorisation_gap", "lpips")."""

    prompts: tuple[str, ...] = Field(description="of each place")
    seeds: tuple[int, ...] = Field(description="of each place")
    references: str = Field(description="SHA-256 over the names of the images that style was held against")
    measures: dict[str, PlaceMeasure] = Field({}, description="by name")


class Difference(Record):
    """One metric of two runs. `difference` is the second less the first; paired over `prompts` that both have, where it has
    an interval.
    """

    metric: str
    first: Estimate
    second: Estimate
    difference: Estimate
    prompts: int = Field(0, description="that were resampled; 0 where nothing pairs")
    higher_is_better: bool | None
    meaningful: bool
