"""Where the weights of evaluation's networks come from, and what to say where they cannot be had.

Every attempt to fetch is bounded: `HF_HUB_OFFLINE=1` makes none, a machine without a network fails within seconds, and
one that swallows packets within `TIMEOUT_S` an attempt.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from brushset.errors import EnvironmentProblem, UsageError
from brushset.files import sha256_file
from brushset.hub import TIMEOUT_S, NoId, NotToBeHad, fetch_repository

INCEPTION = "inception-v3-compat"
# toshas/torch-fidelity's own conversion of the TensorFlow graph that FID was defined on.
INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
_INCEPTION_SHA256_START = "6726825d"


class Unavailable(Exception):
    """The weights are neither on this machine nor to be fetched now."""


def clip_folder(model: str) -> tuple[Path, str]:
    """A local folder of a CLIP in transformers' form, and the SHA-256 of its weights.

    Raises:
        Unavailable: an HF id that is not in the cache, and the hub cannot be reached.
        EnvironmentProblem: a folder without `model.safetensors`.
    """
    given = Path(model).expanduser()
    folder = given if given.is_dir() else _from_hub(model)
    weights = folder / "model.safetensors"
    if given.is_dir() and not weights.is_file():
        raise EnvironmentProblem(
            f'[evaluate] clip_model = "{model}": {weights} is not there; fix: name a CLIP that has model.safetensors'
        )
    if not weights.is_file():
        raise Unavailable(f"of {model} only configuration files are on this machine, not model.safetensors")
    return folder, sha256_file(weights)


def inception_weights(source: str) -> tuple[Path, str]:
    """The file of torch-fidelity's Inception v3, from torch's cache or fetched into it, and its SHA-256.

    Raises:
        Unavailable: it is not in the cache, and cannot be fetched.
        UsageError: `source` is neither the known name nor a file.
    """
    path = Path(source).expanduser()
    if source == INCEPTION:
        path = _fetch_inception()
    elif not path.is_file():
        raise UsageError(
            f'[evaluate] inception = "{source}": no such file; fix: "{INCEPTION}", "random" or a .pth file'
        )
    return path, sha256_file(path)


def _from_hub(model: str) -> Path:
    try:
        return fetch_repository(model, ("*.json", "*.txt", "model.safetensors"))
    except NoId as error:
        raise UsageError(f'[evaluate] clip_model = "{model}": neither a folder nor an HF id') from error
    except NotToBeHad as error:
        raise Unavailable(f"{model} is not on this machine and could not be fetched") from error


def _fetch_inception() -> Path:
    import torch

    path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_URL.rpartition("/")[2]
    if path.is_file():
        return path
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        raise Unavailable(f"{path.name} is not on this machine, and HF_HUB_OFFLINE is set")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _bounded_connections():
            torch.hub.download_url_to_file(INCEPTION_URL, str(path), _INCEPTION_SHA256_START, progress=False)
    except (OSError, RuntimeError) as error:
        raise Unavailable(f"{path.name} is not on this machine and could not be fetched") from error
    return path


@contextmanager
def _bounded_connections() -> Iterator[None]:
    """torch.hub sets no timeout of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
