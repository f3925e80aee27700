"""One file by URL: resumed where it broke off, checked, and only then under its name. The HF hub has its own way (hub.py)."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from brushset.errors import VerificationFailed
from brushset.files import sha256_file

TIMEOUT_S = 15.0
_CHUNK_BYTES = 1 << 20


def offline() -> bool:
    """Whether the user said that nothing is to be fetched."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def fetch_file(url: str, path: Path, *, sha256: str, on_bytes: Callable[[int], None] = lambda _: None) -> None:
    """Fetches `url` to `path`. What an earlier attempt left in `<path>.part` is gone on from, where the server can.

    Raises:
        OSError: no network, no such file, or no answer for 15 s; what has come stays for the next attempt.
        VerificationFailed: the file is not the one that was expected; it is deleted.
    """
    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    there = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={there}-"} if there else {})  # noqa: S310 - pinned https
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310 - pinned https
            _receive(answer, part, resumed=answer.status == 206, on_bytes=on_bytes)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # nothing beyond what is there: it was complete
            raise
    found = sha256_file(part)
    if found != sha256:
        part.unlink()
        raise VerificationFailed(f"{url}: SHA-256 is {found[:12]}…, expected {sha256[:12]}…; fix: fetch it again")
    part.replace(path)


def _receive(answer: Any, part: Path, *, resumed: bool, on_bytes: Callable[[int], None]) -> None:
    """Appends to the part where the server resumes, else begins anew.

    Raises:
        OSError: the connection ended before the length that was announced.
    """
    expected = int(answer.headers.get("Content-Length") or 0)
    received = 0
    with part.open("ab" if resumed else "wb") as file:
        done = file.tell()
        while chunk := _read(answer, file):
            received += chunk
            on_bytes(done + received)
    if received < expected:
        raise ConnectionError(f"{received} of {expected} bytes came")


def _read(answer: Any, file: IO[bytes]) -> int:
    chunk = answer.read(_CHUNK_BYTES)
    file.write(chunk)
    return len(chunk)
