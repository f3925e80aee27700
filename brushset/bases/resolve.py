"""From what a user calls his base model to a file or folder on disk: family checked by header, then hashed.

Only safetensors are ever fetched or opened. sd-scripts itself would load a .ckpt with torch.load and so run what is
in it; here that is refused by content. Hashes are kept by path, size and time of change, so that asking again is free.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from pathlib import Path

from brushset.bases.family import PARTS, check_folder, check_single_file, refuse_pipeline, weight_files
from brushset.bases.keep import make_once
from brushset.bases.random_sd15 import PREFIX, is_random, make_random_base
from brushset.errors import BrushsetError, EnvironmentProblem, UsageError
from brushset.files import link_or_copy, read_json, sha256_file, sha256_json, write_json
from brushset.hub import NotToBeHad, fetch_repository
from brushset.paths import cache_dir
from brushset.protocols import Emit
from brushset.records import BaseFile

_HF_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")
_SLOW_BYTES = 1 << 29
_CONFIGS = ("model_index.json", "*/*.json", "tokenizer/merges.txt")
_WEIGHTS = tuple(f"{part}/{name}.safetensors" for part, name in PARTS.items())
_HALF_WEIGHTS = tuple(f"{part}/{name}.fp16.safetensors" for part, name in PARTS.items())


def resolve_base(model: str, revision: str | None, emit: Emit) -> BaseFile:
    """Finds, checks and hashes a base model: HF id, .safetensors checkpoint, diffusers folder or `random:…`.

    Raises:
        UsageError: no such file, a pickle, or not SD 1.5; the message says what it is.
        EnvironmentProblem: an HF id that can be neither fetched nor found in the cache; a full disk.
    """
    if model.startswith(PREFIX):
        return _describe(model, make_random_base(model, emit), emit)
    path = Path(model).expanduser()
    if path.is_file():
        return _describe(model, path.absolute(), emit)
    if path.is_dir():
        return _describe(model, _plain_names(path.absolute()), emit)
    if not _HF_ID.match(model) or path.suffix in (".safetensors", ".ckpt", ".bin", ".pt"):
        raise UsageError(
            f'base model "{model}": no such file or folder; fix: --base-model with the path of an SD 1.5 '
            ".safetensors file, a diffusers folder, an HF id, random:sd15 or random:tiny"
        )
    return _describe(model, _fetch(model, revision, emit), emit)


def base_sha256(path: Path, emit: Emit) -> str:
    """SHA-256 of a checkpoint file, or over a folder's three weight files; remembered by size and time of change."""
    if path.is_file():
        return _remembered_sha256(path, emit)
    digests = {file.relative_to(path).as_posix(): _remembered_sha256(file, emit) for file in weight_files(path)}
    return sha256_json(digests)


def _describe(name: str, path: Path, emit: Emit) -> BaseFile:
    folder = path.is_dir()
    architecture = check_folder(path) if folder else check_single_file(path)
    return BaseFile(
        name=name,
        path=str(path),
        kind="folder" if folder else "single-file",
        sha256=base_sha256(path, emit),
        random=folder and is_random(path),
        narrow=architecture.narrow,
    )


def _fetch(model: str, revision: str | None, emit: Emit) -> Path:
    """A snapshot of an HF repository: configs first, so that another family is refused before gigabytes come."""
    folder = _snapshot(model, revision, _CONFIGS)
    try:
        refuse_pipeline(folder)
    except UsageError:
        if not (folder / "model_index.json").is_file():
            raise _unreachable(model, None) from None
        raise
    emit("note", text=f"base model {model}: fetching what the cache lacks")
    for wanted in (_WEIGHTS, _HALF_WEIGHTS):
        folder = _snapshot(model, revision, (*_CONFIGS, *wanted))
        if all((folder / name).is_file() for name in wanted):
            return _plain_names(folder)
    raise EnvironmentProblem(
        f'base model "{model}": neither in the cache nor, as safetensors, in its repository: {", ".join(_WEIGHTS)}; '
        "fix: go online, or --base-model with a repository, file or folder that holds safetensors"
    )


def _snapshot(model: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    try:
        return fetch_repository(model, patterns, revision=revision)
    except NotToBeHad as error:
        raise _unreachable(model, error) from error


def _unreachable(model: str, error: Exception | None) -> EnvironmentProblem:
    return EnvironmentProblem(
        f'base model "{model}": not in the Hugging Face cache, and its repository cannot be read; '
        "fix: go online, check the id, or --base-model with a local .safetensors file or diffusers folder",
        detail=repr(error) if error else "",
    )


def _plain_names(folder: Path) -> Path:
    """The folder itself, or, where its weights carry the variant's name (`….fp16.safetensors`), a view in the cache
    under the plain names that every trainer looks for.
    """
    halves = [folder / name for name in _HALF_WEIGHTS]
    plain = [folder / name for name in _WEIGHTS]
    if not all(a.is_file() or b.is_file() for a, b in zip(plain, halves, strict=True)):
        return folder
    renamed = {half: name for half, name, full in zip(halves, _WEIGHTS, plain, strict=True) if not full.is_file()}
    if not renamed:
        return folder
    stamp = {str(half): half.stat().st_mtime_ns for half in renamed}

    def link(view: Path) -> None:
        for pattern in (*_CONFIGS, *_WEIGHTS):
            for file in folder.glob(pattern):
                link_or_copy(file.resolve(), view / file.relative_to(folder))
        for half, name in renamed.items():
            link_or_copy(half.resolve(), view / name)

    return make_once(cache_dir() / "bases" / f"view-{sha256_json([str(folder), stamp])[:16]}", link)


def _remembered_sha256(path: Path, emit: Emit) -> str:
    real = path.resolve()
    status = real.stat()
    name = hashlib.sha256(str(real).encode()).hexdigest()[:32]
    note = cache_dir() / "hashes" / f"{name}.json"
    key = [str(real), status.st_size, status.st_mtime_ns]
    with contextlib.suppress(BrushsetError, KeyError, TypeError):  # an unreadable note is made anew
        if note.is_file() and read_json(note)["file"] == key:
            return str(read_json(note)["sha256"])
    if status.st_size > _SLOW_BYTES:
        emit("note", text=f"hashing {real.name} ({status.st_size / 1e9:.1f} GB), once")
    digest = sha256_file(real)
    write_json(note, {"file": key, "sha256": digest})
    return digest
