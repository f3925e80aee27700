"""Images written while the next ones are made: the PNG of a 512 × 512 image takes a tenth of a second of a core, a GPU makes
one in as much.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

    from PIL.Image import Image
    from typing_extensions import Self

_THREADS = 2
_WAITING = 64  # 50 MB of images of 512 × 512


class Aside:
    """Saves images on other threads. All are on disk once the `with` is left; a failure to write is raised at the latest
    there.
    """

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(_THREADS)
        self._pending: deque[Future[None]] = deque()
        return self

    def save(self, image: Image, path: Path) -> None:
        """Queues an image; waits where too many are queued."""
        self._pending.append(self._pool.submit(image.save, path))
        while len(self._pending) > _WAITING:
            self._pending.popleft().result()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=error is not None)
        if error is None:
            for pending in self._pending:
                pending.result()
