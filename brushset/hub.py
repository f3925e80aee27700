"""Repositories of the Hugging Face hub, in the user's cache: what is there is used, what is missing is fetched.

One way for all that we load by id. `from_pretrained` itself would ask the hub file by file and try each five times,
which took a minute without a network; a snapshot asks once, and fails within a second.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

TIMEOUT_S = 15.0


class NotToBeHad(Exception):
    """The repository is neither in the cache nor to be fetched now."""


class NoId(NotToBeHad):
    """The name cannot be a repository's."""


def fetch_repository(model: str, patterns: Sequence[str], *, revision: str | None = None) -> Path:
    """The local folder of an HF repository, with the files that match `patterns` as far as it has them.

    Raises:
        NoId: a name that no repository could have.
        NotToBeHad: offline and not in the cache, no such repository, or no access to it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(model, revision=revision, allow_patterns=list(patterns), etag_timeout=TIMEOUT_S)
    except HFValidationError as error:
        raise NoId(f"{model}: {error}") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise NotToBeHad(f"{model}: {error}") from error
    return Path(folder)


@contextmanager
def cache_only() -> Iterator[None]:
    """Within it nothing is fetched: what is not in the cache is not to be had."""
    from huggingface_hub import constants

    before, said = constants.HF_HUB_OFFLINE, os.environ.get("HF_HUB_OFFLINE")
    constants.HF_HUB_OFFLINE = True
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
        if said is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = said
