"""What one extractor sees of a grid, as vectors: the cells, the references, the prompts. Metrics are arithmetic on it.

Rows of all cells stand for the same places (a prompt with a seed) in the same order, so that differences pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from eval.layout import LEAST_HELD_OUT, Layout
from eval.metric import NotMeasured


@dataclass(frozen=True)
class Seen:
    """Vectors are float32 [rows, D], of unit length where they come from an embedder. `prompts` int [N] is each place's
    prompt: what intervals resample. `others` are the references of styles that this one is mixed with. `texts` [N, D] are
    the places' prompts without trigger and style words. `twins` bool [T, T] marks training images of which the other is a
    near-duplicate.
    """

    layout: Layout
    prompts: np.ndarray
    cells: Mapping[str, np.ndarray]
    trained: np.ndarray
    held_out: np.ndarray
    others: Mapping[str, np.ndarray] = field(default_factory=dict)
    texts: np.ndarray | None = None
    twins: np.ndarray | None = None

    def of(self, cell: str | None) -> np.ndarray:
        """A cell's rows [N, D].

        Raises:
            NotMeasured: it was not sampled.
        """
        if cell is None or cell not in self.cells or not len(self.cells[cell]):
            raise NotMeasured(f"no images of {cell or 'such a cell'}")
        return self.cells[cell]

    def references(self, style: str | None = None) -> np.ndarray:
        """What a style is held against: images that were never trained on, where there are 4, else those that were.

        Raises:
            NotMeasured: none is there.
        """
        if style is not None and style != self.layout.style:
            found = self.others.get(style, np.zeros((0, 0)))
        else:
            found = self.held_out if self.uses_held_out else self.trained
        if not len(found):
            raise NotMeasured(f"no references of {style or self.layout.style}")
        return found

    @property
    def uses_held_out(self) -> bool:
        """Whether this style's references are images that were never trained on."""
        return len(self.held_out) >= LEAST_HELD_OUT

    @property
    def references_note(self) -> str:
        """What the references are, for a score's note."""
        kind = "held out, never trained on" if self.uses_held_out else "trained on"
        return f"{len(self.references())} references, {kind}"

    def at(self, prompts: Sequence[int]) -> Seen:
        """The same with the places of some prompts alone: to choose on one half of the prompts and report on the other."""
        kept = np.isin(self.prompts, list(prompts))
        cells = {name: rows[kept] if len(rows) == len(kept) else rows for name, rows in self.cells.items()}
        texts = None if self.texts is None else self.texts[kept]
        return replace(self, prompts=self.prompts[kept], cells=cells, texts=texts)
