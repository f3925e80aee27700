"""How many rows a model takes at a time: as many as were asked for, half of it once memory has ended.

What does not fit is done again in smaller portions, so that nothing made so far is lost, and the smaller size is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from brushset.errors import BrushsetError, EnvironmentProblem
from brushset.failure import free_memory, is_out_of_memory
from brushset.protocols import Emit


@dataclass
class Portions:
    """Of one model at one image size. `limit` is what was found to fit, None where nothing has failed yet."""

    what: str
    emit: Emit
    limit: int | None = None

    def run(self, model: Callable[[slice], torch.Tensor], rows: int, at_a_time: int) -> torch.Tensor:
        """`model` on all rows, in order, at most `at_a_time` together.

        Raises:
            EnvironmentProblem: not even one row fits.
        """
        parts: list[torch.Tensor] = []
        done = 0
        while done < rows:
            size = min(at_a_time, rows - done, self.limit or rows)
            made = _try(model, slice(done, done + size))
            if made is None:
                self._halve(size)
                continue
            parts.append(made)
            done += size
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _halve(self, size: int) -> None:
        free_memory()
        if size == 1:
            raise EnvironmentProblem(
                f"{self.what}: out of memory with a single row; fix: smaller images, or free the memory"
            )
        self.limit = size // 2
        self.emit("warning", text=f"{self.what}: out of memory with {size} rows at a time; goes on with {self.limit}")


def _try(model: Callable[[slice], torch.Tensor], part: slice) -> torch.Tensor | None:
    """The result, or None where memory ended; by then what the attempt held is freed."""
    try:
        return model(part)
    except BrushsetError:
        raise
    except Exception as error:  # no class covers what the libraries raise when memory ends
        if not is_out_of_memory(error):
            raise
    return None
