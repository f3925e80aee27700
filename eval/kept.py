"""Vectors of images seen before, by image and extractor: a table in the user's cache.

SQLite, because a batch then is one transaction: whole or not there however the process dies, and several runs may write at
a time. 3 to 8 KB a vector; beyond 2 GiB the older half goes. A table that cannot be read is an error with its fix.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from brushset.errors import EnvironmentProblem
from brushset.paths import cache_dir

if TYPE_CHECKING:
    import numpy as np

MOST_BYTES = 2 << 30
_WAIT_S = 30.0
_KEYS_A_QUERY = 500
_TABLE = "CREATE TABLE IF NOT EXISTS vectors (id INTEGER PRIMARY KEY, key TEXT UNIQUE NOT NULL, vector BLOB NOT NULL)"


class KeptVectors:
    """Key → float32 [D]. Every method raises an EnvironmentProblem where the file is damaged, locked for half a minute, or
    cannot be written.
    """

    def __init__(self, path: Path, most_bytes: int = MOST_BYTES) -> None:
        self._path, self._most = path, most_bytes

    def read(self, extractor: str, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """Those that are there."""
        import numpy as np

        found: dict[str, np.ndarray] = {}
        with self._opened() as connection:
            for start in range(0, len(keys), _KEYS_A_QUERY):
                some = {f"{extractor} {key}": key for key in keys[start : start + _KEYS_A_QUERY]}
                query = f"SELECT key, vector FROM vectors WHERE key IN ({','.join('?' * len(some))})"  # noqa: S608 - question marks
                rows = connection.execute(query, list(some))
                found.update({some[key]: np.frombuffer(blob, dtype=np.float32) for key, blob in rows})
        return found

    def write(self, extractor: str, vectors: Mapping[str, np.ndarray]) -> None:
        """Keeps them, all or none."""
        rows = [(f"{extractor} {key}", vector.astype("<f4").tobytes()) for key, vector in vectors.items()]
        with self._opened() as connection, connection:
            connection.executemany("INSERT OR REPLACE INTO vectors (key, vector) VALUES (?, ?)", rows)
            self._forget_old(connection)

    def _forget_old(self, connection: sqlite3.Connection) -> None:
        """The file keeps its size, and its free pages are used again: the size is that of the pages in use."""
        pages, free, size = (
            connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
        if (pages - free) * size > self._most:
            half = "SELECT id FROM vectors ORDER BY id LIMIT (SELECT COUNT(*) / 2 FROM vectors)"
            connection.execute(f"DELETE FROM vectors WHERE id IN ({half})")  # noqa: S608 - our own text

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        connection: sqlite3.Connection | None = None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self._path, timeout=_WAIT_S)
            connection.execute(_TABLE)
            yield connection
        except (sqlite3.Error, OSError) as error:
            raise EnvironmentProblem(
                f"{self._path}: vectors of images seen before cannot be read or kept: {error}; fix: free the disk or its "
                "permissions, or delete the file, and they are computed again"
            ) from error
        finally:
            if connection is not None:
                connection.close()


def kept_vectors() -> KeptVectors:
    """The table of this user."""
    return KeptVectors(cache_dir() / "eval" / "vectors.sqlite3")
