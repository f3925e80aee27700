"""SIGTERM in the middle of a training: the work since the last state need not be lost.

A time limit or a scheduler says SIGTERM, and gives some time before it kills. Whoever can save where it is says so by
`stopping_at_rest`; the signal is then only noted, and told at the next moment that is good for saving (`raise_if_asked`),
between two stages, or after a while at any. The signal's handler itself waits for nothing.
"""

from __future__ import annotations

import _thread
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from brushset.errors import Interrupted

PATIENCE_S = 45.0  # 50 passes lie between two good moments on a GPU; batch systems give 30 s to some minutes

_sections = 0
_noted = threading.Event()


@contextmanager
def stopping_at_rest() -> Iterator[None]:
    """Inside, SIGTERM waits for `raise_if_asked`."""
    global _sections  # noqa: PLW0603  signals are the process's, too
    _sections += 1
    try:
        yield
    finally:
        _sections -= 1


def note_stop(signum: int) -> bool:
    """Of a signal's handler: whether it is enough to have noted it. The second time, or after PATIENCE_S, it is not."""
    if signum != signal.SIGTERM or not _sections or _noted.is_set():
        _noted.clear()
        return False
    _noted.set()
    timer = threading.Timer(PATIENCE_S, _remind)
    timer.daemon = True
    timer.start()
    return True


def is_stop_asked() -> bool:
    """Whether SIGTERM was noted."""
    return _noted.is_set()


def raise_if_asked() -> None:
    """Raises Interrupted where SIGTERM was noted."""
    if _noted.is_set():
        _noted.clear()
        raise Interrupted(signal.SIGTERM)


def _remind() -> None:
    """As if the signal came again, if somebody still waits."""
    if _noted.is_set():
        _thread.interrupt_main(signal.SIGTERM)
