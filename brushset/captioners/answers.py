"""What captioners said, by image, captioner, settings and weights: a table in the user's cache.

SQLite, because a batch then is one transaction: whole or not there however the process dies, and several runs may write
at a time. A table that cannot be read is an error, not an empty one: hours of captioning may be in it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from brushset.errors import EnvironmentProblem
from brushset.paths import cache_dir

_WAIT_S = 30.0
_KEYS_A_QUERY = 500


class Answers:
    """Key → text. Every method raises an EnvironmentProblem where the file is damaged, locked for half a minute, or
    cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._told():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=_WAIT_S)
            self._connection.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, text TEXT NOT NULL)")

    def read(self, keys: Sequence[str]) -> dict[str, str]:
        """The answers that are there."""
        found: dict[str, str] = {}
        for start in range(0, len(keys), _KEYS_A_QUERY):
            some = keys[start : start + _KEYS_A_QUERY]
            query = f"SELECT key, text FROM answers WHERE key IN ({','.join('?' * len(some))})"  # noqa: S608 - question marks
            with self._told():
                found |= dict(self._connection.execute(query, some))
        return found

    def write(self, answers: Mapping[str, str]) -> None:
        """Keeps them, all or none."""
        with self._told(), self._connection:
            self._connection.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", answers.items())

    def close(self) -> None:
        """Lets go of the file."""
        self._connection.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise EnvironmentProblem(
                f"{self._path}: captions made before cannot be read or kept: {error}; fix: free the disk or its "
                "permissions, or delete the file, and they are made again"
            ) from error


def answers_file() -> Path:
    """Where they are kept."""
    return cache_dir() / "captions" / "answers.sqlite3"


def open_answers() -> closing[Answers]:
    """The answers kept so far; closed where the block ends."""
    return closing(Answers(answers_file()))
