"""What is made once and kept in the cache: whole or not there, by one process at a time.

Whoever comes second waits for the first and finds the folder. What a killed process left behind is swept away by the
next that makes the same folder: an unfinished model is 2 GB.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from brushset.errors import EnvironmentProblem


def make_once(final: Path, write: Callable[[Path], None]) -> Path:
    """Returns `final`; where it is not there, `write` fills a temporary neighbour, which is then renamed.

    Raises:
        EnvironmentProblem: the cache cannot be written.
    """
    if final.is_dir():
        return final
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(final.with_name(f".{final.name}.lock"))):
            if not final.is_dir():
                _make(final, write)
    except OSError as error:
        raise EnvironmentProblem(
            f"{final}: cannot be made: {error.strerror or error}; fix: free the disk, or set BRUSHSET_CACHE to another folder"
        ) from error
    return final


def _make(final: Path, write: Callable[[Path], None]) -> None:
    prefix = f".tmp-{final.name}-"
    for left in final.parent.glob(f"{prefix}*"):
        shutil.rmtree(left, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=final.parent))
    try:
        write(temporary)
        temporary.chmod(0o755)
        temporary.rename(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
