"""Style similarity: how alike generated images are to the prepared references, as CLIP sees them.

    S = mean over generated x and references r of cos(f(x), f(r))

The mean of cosines, not the cosine of means (which is larger, as it divides by the lengths of the means). -1 to 1,
higher is better, read between two rows: the base's, and the references held against themselves. Least sensible n:
some 50 images. CLIP's embedding holds content besides style, so a set with one subject scores high for showing that
subject. The references are the held-out images, where there are 4 or more: against images that were trained on, a copy
of one of them scores best of all. The note of every score says which they were.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from brushset.protocols import Embedder, GridImages
from eval.metric import Measurement, NotMeasured

if TYPE_CHECKING:
    import numpy as np


LEAST_HELD_OUT = 4


def measure_style_similarity(grid: GridImages, embedder: Embedder) -> Measurement:
    """The mean cosine of a cell's images to the references.

    Raises:
        NotMeasured: one of the two sets is empty.
    """
    if not grid.images or not grid.references:
        raise NotMeasured(f"{len(grid.images)} images and {len(grid.references)} references; at least 1 of each")
    generated = embedder.encode_images(grid.images)
    held_out = len(grid.held_out) >= LEAST_HELD_OUT
    references = embedder.encode_images(grid.held_out if held_out else grid.references)
    kind = "held out, never trained on" if held_out else "trained on"
    return Measurement(mean_cosine(generated, references), len(generated), f"{len(references)} references, {kind}")


def mean_cosine(generated: np.ndarray, references: np.ndarray) -> float:
    """Mean over all pairs; both [N, D] of unit length, so the dot product of the means is the mean of the dots."""
    import numpy as np

    return float(generated.astype(np.float64).mean(axis=0) @ references.astype(np.float64).mean(axis=0))
