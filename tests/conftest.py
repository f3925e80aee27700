"""What all tests share: an own cache, no network, and the narrow base model, made once a session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported: it reads this once
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the narrow model gains nothing from more, and waits on busy cores

from brushset.errors import EnvironmentProblem
from brushset.kohya.source import Source, find_source
from brushset.log import silent
from brushset.records import BaseFile


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache of this test session, empty at its start; BRUSHSET_CACHE set outside is kept, to spare big models."""
    if given := os.environ.get("BRUSHSET_CACHE"):
        yield Path(given)
        return
    folder = tmp_path_factory.mktemp("cache")
    os.environ["BRUSHSET_CACHE"] = str(folder)
    yield folder
    del os.environ["BRUSHSET_CACHE"]


@pytest.fixture(scope="session")
def tiny_base(cache: Path) -> BaseFile:
    """`random:tiny`: SD 1.5's tree, narrow, of random numbers."""
    from brushset.bases.resolve import resolve_base

    return resolve_base("random:tiny", None, silent)


@pytest.fixture(scope="session")
def small_base(tmp_path_factory: pytest.TempPathFactory) -> BaseFile:
    """The small world's: narrow too, and it has learnt to draw (tests/small_world, scripts/make_small_world.py)."""
    from brushset.bases.resolve import resolve_base
    from small_world.folder import unpack

    return resolve_base(str(unpack(tmp_path_factory.mktemp("small_world"))), None, silent)


@pytest.fixture(scope="session")
def sd_scripts() -> Source:
    """The real sd-scripts, for tests marked vendor."""
    try:
        return find_source(fetch=False)
    except EnvironmentProblem as error:
        pytest.skip(str(error))
