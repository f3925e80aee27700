"""`fetch-models`: all weights that a run will read, fetched beforehand and checked, for a node without a network.

Base model, captioner and the networks of evaluation, of the styles that are named or of the defaults. What is there is
hashed and left; what broke off is gone on with. Where something cannot be had, the rest is fetched all the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from rich.table import Table

from brushset.bases.random_sd15 import PREFIX
from brushset.bases.resolve import base_sha256, resolve_base
from brushset.captioners import weights_of
from brushset.captioners.weights import Weights
from brushset.cli.guard import print_event, stderr, stdout
from brushset.cli.options import Options, known_styles, load_spec
from brushset.errors import EnvironmentProblem, VerificationFailed
from brushset.files import list_files
from brushset.hub import NotToBeHad, cache_only
from brushset.load import check_style_name
from brushset.log import silent
from brushset.spec import StyleSpec
from eval.made_up import MADE_UP
from eval.weights import PINNED, Pinned, Unavailable, find_weights

_LICENCES = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "CreativeML Open RAIL-M",
    "Salesforce/blip-image-captioning-large": "BSD-3-Clause",
    "SmilingWolf/wd-vit-tagger-v3": "Apache-2.0",
    "timm/vit_large_patch14_clip_224.openai": "MIT",
    "pharmapsychotic/ci-preprocess": "MIT",
}
_HASH_DIGITS = 64
State = Literal["checked", "there", "missing", "damaged"]


@dataclass(frozen=True)
class Wanted:
    """One model. `find` gives its files, fetched where they are not there."""

    name: str
    what: str
    licence: str
    find: Callable[[], list[Path]]
    expected_bytes: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of it. `state` checked: all weights have the hash that their publisher states."""

    wanted: Wanted
    state: State
    size_bytes: int | None
    where: str
    problem: str = ""


def fetch_models(options: Options, styles: Sequence[str]) -> None:
    """Fetches and checks; `--dry-run` only looks what is there.

    Raises:
        EnvironmentProblem: models are not to be had, named, after all others were fetched.
        VerificationFailed: one is damaged.
    """
    specs = [load_spec(check_style_name(name), options, images=None) for name in _named(options, styles)]
    outcomes = []
    with cache_only() if options.dry_run else contextlib.nullcontext():
        for wanted in wanted_models(specs or [StyleSpec(name="default", trigger="default")]):
            if not (options.json or options.dry_run):
                stderr.print(f"{wanted.name} … {_size(wanted.expected_bytes)}", markup=False, style="dim")
            outcomes.append(_fetch(wanted))
    _show(outcomes, as_json=options.json)
    damaged = [outcome.problem for outcome in outcomes if outcome.state == "damaged"]
    missing = [outcome for outcome in outcomes if outcome.state == "missing"]
    if damaged:
        raise VerificationFailed.of_many(damaged)
    if missing and not options.dry_run:
        raise EnvironmentProblem(
            f"{len(missing)} of {len(outcomes)} models are neither on this machine nor to be fetched now: "
            f"{', '.join(outcome.wanted.name for outcome in missing)}; fix: go online and call this again, which keeps what "
            "has come so far, or copy the caches of a machine that has them (HF_HOME, TORCH_HOME)",
            detail="\n".join(outcome.problem for outcome in missing),
        )


def wanted_models(specs: Sequence[StyleSpec]) -> list[Wanted]:
    """What those styles read, each model once."""
    found: dict[str, Wanted] = {}
    for spec in specs:
        for wanted in (*_base(spec), *_captioner(spec), *_evaluation(spec)):
            found.setdefault(wanted.name, wanted)
    return list(found.values())


def _named(options: Options, styles: Sequence[str]) -> list[str]:
    asked = [*options.style, *styles]
    return known_styles() if "all" in asked else list(dict.fromkeys(asked))


def _base(spec: StyleSpec) -> Iterator[Wanted]:
    model, revision = spec.base.model, spec.base.revision
    if model.startswith(PREFIX):
        return

    def find() -> list[Path]:
        folder = Path(resolve_base(model, revision, silent).path)
        return [file for file in list_files(folder) if file.suffix == ".safetensors"] if folder.is_dir() else [folder]

    yield Wanted(model, "base model", _LICENCES.get(model, "see its page"), find)


def _captioner(spec: StyleSpec) -> Iterator[Wanted]:
    for weights in weights_of(spec.caption):
        name = weights.model
        yield Wanted(name, "captions", _LICENCES.get(name, "see its page"), partial(_repository, weights))


def _evaluation(spec: StyleSpec) -> Iterator[Wanted]:
    for pinned in PINNED:
        source = str(getattr(spec.evaluate, pinned.setting))
        if source == MADE_UP or spec.smoke:
            continue
        own = source == pinned.name
        yield Wanted(
            source,
            pinned.what,
            pinned.licence if own else "see its page",
            partial(_network, source, pinned),
            pinned.size_bytes if own else None,
        )


def _repository(weights: Weights) -> list[Path]:
    """Files of a repository, those that carry weights; empty is as good as missing."""
    folder = weights.folder()
    found = sorted({path for pattern in weights.files for path in folder.glob(pattern)})
    heavy = [path for path in found if path.suffix in {".safetensors", ".onnx"}]
    if not heavy:
        raise NotToBeHad(f"{weights.model}: of it only {len(found)} small files are in the cache")
    return found


def _network(source: str, pinned: Pinned) -> list[Path]:
    return [find_weights(source, pinned).file]


def _fetch(wanted: Wanted) -> Outcome:
    try:
        files = wanted.find()
        checked = [_checked(file) for file in files]
    except VerificationFailed as error:
        return Outcome(wanted, "damaged", None, "", str(error))
    except (NotToBeHad, Unavailable, EnvironmentProblem) as error:
        return Outcome(wanted, "missing", None, "", str(error))
    size = sum(file.stat().st_size for file in files)
    return Outcome(wanted, "checked" if any(checked) else "there", size, str(_place(files)))


def _checked(file: Path) -> bool:
    """Whether a file was held against its publisher's hash: the hub's cache names large files by their SHA-256, and what is
    pinned has been checked where it was found.

    Raises:
        VerificationFailed: it is another.
    """
    stated = file.resolve().name
    if len(stated) != _HASH_DIGITS:
        return any(pinned.weights == file.name and pinned.url for pinned in PINNED)
    found = base_sha256(file, silent)
    if found != stated:
        raise VerificationFailed(
            f"{file}: SHA-256 is {found[:12]}…, its publisher's {stated[:12]}…; fix: delete {file.resolve()} and fetch again"
        )
    return True


def _place(files: Sequence[Path]) -> Path:
    return files[0] if len(files) == 1 else files[0].parent


def _show(outcomes: Sequence[Outcome], *, as_json: bool) -> None:
    if as_json:
        for outcome in outcomes:
            wanted = outcome.wanted
            fields = {"name": wanted.name, "for": wanted.what, "licence": wanted.licence, "state": outcome.state}
            print_event(
                "model", {**fields, "bytes": outcome.size_bytes, "where": outcome.where, "problem": outcome.problem}
            )
        return
    table = Table("model", "for", "licence", "size", "state", "where")
    for outcome in outcomes:
        size = _size(outcome.size_bytes or outcome.wanted.expected_bytes)
        table.add_row(
            outcome.wanted.name, outcome.wanted.what, outcome.wanted.licence, size, outcome.state, outcome.where
        )
    stdout.print(table)
    total = sum(outcome.size_bytes or 0 for outcome in outcomes)
    stdout.print(f"{_size(total)} on this machine; checked: every large file has the hash that its publisher states")


def _size(count: int | None) -> str:
    if count is None:
        return ""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
