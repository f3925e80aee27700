"""Memory of a GPU that the diffusion model and the encoders of evaluation share, where it is large enough for both.

Together they take some 7 GB in half and full precision besides what a batch needs: with 16 GB both stay, with less each
makes way for the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from brushset.failure import free_memory

if TYPE_CHECKING:
    from eval.look import Extractor

_ENOUGH_BYTES = 15 << 30  # what cards of 16 GB say they have


def has_room_for_both() -> bool:
    """Whether models may stay where they are; on a CPU, whose memory is not what is short, they do."""
    import torch

    return not torch.cuda.is_available() or torch.cuda.mem_get_info()[1] >= _ENOUGH_BYTES


def release(extractors: Iterable[Extractor]) -> None:
    """Frees the networks of extractors; each is loaded again for the next image that it has not seen."""
    from eval.look import Missing

    for extractor in extractors:
        if not isinstance(extractor, Missing):
            extractor.release()
    free_memory()
