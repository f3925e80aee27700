"""Where the weights of evaluation's networks come from: which commit, which bytes, and what to say where they are not.

Each default is pinned by commit and by the SHA-256 of its weights, looked up in public records of these files. Another id
stands for its branch `main`, unless a folder or file is named, which is then taken as it is. Every attempt to fetch is
bounded: `HF_HUB_OFFLINE=1` makes none, a machine without a network fails within seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from brushset.bases.resolve import base_sha256
from brushset.download import fetch_file, offline
from brushset.errors import EnvironmentProblem, UsageError, VerificationFailed
from brushset.hub import NoId, NotToBeHad, fetch_repository
from brushset.log import silent

FETCH = "orchestrate.py fetch-models"


class Unavailable(Exception):
    """The weights are neither on this machine nor to be fetched now."""


@dataclass(frozen=True)
class Pinned:
    """A network's weights as published. `url` None: on the HF hub, as `name` at `revision`."""

    setting: str
    name: str
    weights: str
    sha256: str
    size_bytes: int
    licence: str
    what: str
    revision: str | None = None
    url: str | None = None
    configs: tuple[str, ...] = ("*.json", "*.txt")


@dataclass(frozen=True)
class Found:
    """Weights on this machine."""

    file: Path
    sha256: str

    @property
    def folder(self) -> Path:
        """Where they lie, with what else the repository has."""
        return self.file.parent


CLIP = Pinned(
    "clip_model", "openai/clip-vit-large-patch14", "model.safetensors",
    "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb", 1_710_540_580, "MIT",
    "CLIP score, style, KD, CMMD", revision="32bd64288804d66eefd0ccbe215aa642df71cc41",
)  # fmt: skip
CSD = Pinned(
    "csd_model", "tomg-group-umd/CSD-ViT-L", "pytorch_model.bin",
    "40e92fad63a361b8136100cd234c42d401ef9b34ff1748234318929ebcc7e7a1", 2_438_228_893, "CC-BY-4.0 (code MIT)",
    "style", revision="5bc26a6fb0487f3f00a2a7313135103a005b1b67", configs=(),
)  # fmt: skip
DINOV2 = Pinned(
    "dinov2_model", "facebook/dinov2-large", "model.safetensors",
    "399fba97a95f22c36834418bc69373364a99af3a1153da1c0fb31db567c92e23", 1_217_522_888, "Apache-2.0",
    "KD, memorisation, Vendi", revision="47b73eefe95e8d44ec3623f8890bd894b6ea2d6c",
)  # fmt: skip
# toshas/torch-fidelity's own conversion of the TensorFlow graph that FID was defined on.
INCEPTION = Pinned(
    "inception", "inception-v3-compat", "weights-inception-2015-12-05-6726825d.pth",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2", 95_628_359, "Apache-2.0",
    "FID, KID",
    url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
)  # fmt: skip
# LPIPS' own five layers, 6 KB, come with torchmetrics.
ALEXNET = Pinned(
    "lpips_model", "alexnet", "alexnet-owt-7be5be79.pth",
    "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02", 244_408_911, "BSD-3-Clause",
    "LPIPS", url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
)  # fmt: skip
PINNED = (CLIP, CSD, DINOV2, INCEPTION, ALEXNET)


def find_weights(source: str, pinned: Pinned) -> Found:
    """The weights that a setting names: the pinned ones by their name, another HF id, a folder or a file.

    Raises:
        Unavailable: they are not in the cache, and cannot be fetched.
        EnvironmentProblem: a folder without the weights' file.
        UsageError: no such file, and no id.
        VerificationFailed: the pinned weights are damaged.
    """
    given = Path(source).expanduser()
    if given.is_file():
        return _found(given)
    if given.is_dir():
        return _in_folder(given, source, pinned)
    if source == pinned.name:
        file = _fetch_url(pinned) if pinned.url else _fetch_hub(source, pinned, pinned.revision)
        return _verified(file, pinned)
    if pinned.url or given.suffix in (".pth", ".bin", ".safetensors"):
        raise UsageError(
            f'[evaluate] {pinned.setting} = "{source}": no such file; fix: "{pinned.name}", "random" or a file'
        )
    return _found(_fetch_hub(source, pinned, None))


def url_file(pinned: Pinned) -> Path:
    """Where torch's cache keeps a file that is fetched by URL; torch and torchmetrics look there too."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints" / pinned.weights


def _in_folder(folder: Path, source: str, pinned: Pinned) -> Found:
    for name in dict.fromkeys((pinned.weights, "model.safetensors")):
        if (folder / name).is_file():
            return _found(folder / name)
    raise EnvironmentProblem(
        f'[evaluate] {pinned.setting} = "{source}": {folder / pinned.weights} is not there; '
        f"fix: name a folder that has {pinned.weights}"
    )


def _fetch_hub(source: str, pinned: Pinned, revision: str | None) -> Path:
    names = dict.fromkeys((pinned.weights, "model.safetensors"))
    try:
        folder = fetch_repository(source, (*pinned.configs, *names), revision=revision)
    except NoId as error:
        raise UsageError(f'[evaluate] {pinned.setting} = "{source}": neither a folder nor an HF id') from error
    except NotToBeHad as error:
        raise Unavailable(f"{source} is not on this machine and could not be fetched; fix: {FETCH}") from error
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise Unavailable(f"of {source} {pinned.weights} is not on this machine; fix: {FETCH}")


def _fetch_url(pinned: Pinned) -> Path:
    assert pinned.url, "it is fetched by URL"
    path = url_file(pinned)
    if path.is_file():
        return path
    if offline():
        raise Unavailable(f"{path.name} is not on this machine, and HF_HUB_OFFLINE is set; fix: {FETCH}")
    try:
        fetch_file(pinned.url, path, sha256=pinned.sha256)
    except OSError as error:
        raise Unavailable(f"{path.name} is not on this machine and could not be fetched; fix: {FETCH}") from error
    return path


def _verified(file: Path, pinned: Pinned) -> Found:
    found = _found(file)
    if found.sha256 != pinned.sha256:
        raise VerificationFailed(
            f"{file}: not the weights of {pinned.name}: SHA-256 is {found.sha256[:12]}…, expected "
            f"{pinned.sha256[:12]}…; fix: delete {file.resolve()} and fetch again: {FETCH}"
        )
    return found


def _found(file: Path) -> Found:
    """Hashed once; the hash is remembered by size and time of change."""
    return Found(file, base_sha256(file, silent))
