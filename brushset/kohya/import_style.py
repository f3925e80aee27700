"""A style file from a training and a dataset TOML that somebody already has.

What counts is what sd-scripts would have used: a key that is not given has sd-scripts' default, and the style states it
where ours is another one. What no field of a style says goes to [train.extra]; what cannot be carried over is told.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from brushset.errors import UsageError
from brushset.files import shown, toml_text
from brushset.kohya.check.findings import flat_tables, said
from brushset.kohya.check.flags import check_pair, refusal
from brushset.kohya.check.options import default_of, known_flags
from brushset.kohya.check.validate import classify_files
from brushset.kohya.import_train import OURS_TO_SET, Pair, read_train
from brushset.kohya.render import LOGGING_DIR, WEIGHTS_DIR, render_dataset, render_training
from brushset.load import build_spec
from brushset.spec import STYLE_NAME, StyleSpec

Tables = dict[str, Any]
_TRIGGER = r"^[^\s,][^,\n]{0,63}$"


@dataclass(frozen=True)
class ImportAsk:
    """What the user says himself; None where the files shall say it."""

    name: str | None = None
    trigger: str | None = None


@dataclass(frozen=True)
class Imported:
    """A style file's text, and what could not be carried over, a line each."""

    name: str
    trigger: str
    text: str
    notes: tuple[str, ...]


def import_style(paths: Sequence[Path], ask: ImportAsk) -> Imported:
    """Reads a training TOML and its dataset TOML, in any order.

    Raises:
        UsageError: they are no such pair, nothing says the trigger, or brushset refuses a value; each reason is a line.
    """
    training, dataset = _read_pair(paths)
    flat = {str(path[-1]): value for path, value in flat_tables(training)}
    ours = flat.get("output_dir") == WEIGHTS_DIR and flat.get("logging_dir") == LOGGING_DIR
    notes: list[str] = []
    subset = _one_subset(dataset, notes)
    pair = Pair(dict(flat), dict(subset), ours, notes)
    tables = _identity(pair, ask)
    tables["base"] = {"model": pair.training.pop("pretrained_model_name_or_path", None)}
    tables["dataset"] = _dataset(pair)
    tables["train"] = read_train(pair)
    if extra := _extra(pair):
        tables["train"] |= {"engine": "kohya", "extra": extra}  # the embedded engine knows no options but ours
    bare = _differing(tables, StyleSpec)
    spec = _accepted(bare, pair.notes)
    text = f"# Imported from {' and '.join(path.name for path in paths)}.\n{toml_text(bare)}"
    return Imported(spec.name, spec.trigger, text, tuple(pair.notes))


def _read_pair(paths: Sequence[Path]) -> tuple[Tables, Tables]:
    training: Tables | None = None
    dataset: Tables = {}
    for file in classify_files(paths):
        if file.kind == "training" and training is None:
            training = file.read.tables
            if file.script:
                raise UsageError(f"{file.name}: {file.what}; brushset trains SD 1.5 only")
        elif file.kind == "dataset" and not dataset:
            dataset = file.read.tables
        else:
            told = "; ".join(finding.message for finding in file.read.findings) or file.what
            twice = f"a second {file.kind} TOML" if file.kind in ("training", "dataset") else told
            raise UsageError(f"{file.name}: {twice}; expected one training and one dataset TOML")
    if training is None:
        raise UsageError(
            f"{', '.join(map(shown, paths))}: no training TOML among them; expected one, and its dataset TOML"
        )
    return training, dataset


def _one_subset(dataset: Tables, notes: list[str]) -> Tables:
    """[general], the first dataset and its first subset of style images, laid over one another."""
    datasets = [item for item in dataset.get("datasets", []) if isinstance(item, Mapping)]
    merged: Tables = dict(dataset.get("general", {}))
    for index, item in enumerate(datasets):
        for number, subset in enumerate(item.get("subsets", [])):
            if index == number == 0:
                merged |= {key: value for key, value in item.items() if key != "subsets"} | dict(subset)
            else:
                folder = said("image_dir", subset.get("image_dir", ""))
                notes.append(
                    f"not carried over: {folder}: a style has one folder of images; lay them together, or make another style"
                )
    return merged


def _identity(pair: Pair, ask: ImportAsk) -> Tables:
    training = pair.training
    given = training.pop("output_name", None) or training.get("metadata_title") or ""
    training.pop("metadata_title", None)
    name = ask.name or re.sub(r"[^a-z0-9_-]+", "-", str(given).lower()).strip("-_")[:48] or "imported"
    if not re.match(STYLE_NAME, name):
        raise UsageError(f'style "{name}": 1-48 of a-z 0-9 _ -, starting with a letter or digit; fix: --name')
    phrase, tokens = training.pop("metadata_trigger_phrase", None), pair.dataset.pop("class_tokens", None)
    trigger = ask.trigger or phrase or tokens or _commonest_first_part(pair.dataset.get("image_dir"))
    if not trigger or not re.match(_TRIGGER, str(trigger)):
        found = f'"{trigger}" is none' if trigger else "neither file nor caption says it"
        raise UsageError(f"trigger: {found}: a word without a comma that calls the style; fix: --trigger WORD")
    if not (ask.trigger or phrase):
        source = "class_tokens" if tokens else "the commonest first part of the captions"
        pair.notes.append(f'trigger "{trigger}": {source}; fix it in the style file if it is another')
    return {"name": name, "trigger": str(trigger), "description": training.pop("metadata_description", None) or ""}


def _commonest_first_part(folder: object) -> str:
    """The first comma-separated part of the .txt captions in a folder, where most of them agree on it."""
    path = Path(str(folder or "?"))
    texts = (
        [item.read_text(encoding="utf-8", errors="replace") for item in sorted(path.glob("*.txt"))]
        if path.is_dir()
        else []
    )
    parts = Counter(text.partition(",")[0].strip() for text in texts)
    part, count = parts.most_common(1)[0] if parts else ("", 0)
    return part if 2 * count > len(texts) else ""


def _dataset(pair: Pair) -> Tables:
    table: Tables = {}
    folder = pair.dataset.pop("image_dir", None) or pair.training.get("train_data_dir")
    if folder and not pair.ours:
        path = Path(str(folder))
        table["images"] = str(path.absolute()) if path.is_dir() else str(folder)
        if not path.is_dir():
            pair.notes.append(f"{said('images', str(folder))}: this folder is not there; fix it in the style file")
    resolution = _square(pair.take("resolution"), pair.notes)
    if resolution:
        table["resolution"] = resolution
    split = pair.take("validation_split")
    if not pair.ours:
        table["holdout"] = float(split or 0.0)
        if split:
            table["holdout_from"] = 2
            pair.notes.append(
                f"validation_split = {split} became [dataset] holdout: brushset holds the images out itself"
            )
    extension = pair.take("caption_extension")
    if extension not in (".txt", "txt"):
        pair.notes.append(
            f"caption_extension {extension or '.caption, the default'}: brushset reads .txt captions; rename them"
        )
    return table


def _square(value: object, notes: list[str]) -> int | None:
    """The side of a square resolution, from any way of writing it; a rectangle becomes the square of its area."""
    parts = [int(part) for part in value.split(",")] if isinstance(value, str) else value
    sides = [parts] if isinstance(parts, int) else list(parts) if isinstance(parts, list) else []
    if not sides:
        return None
    if len(sides) == 2 and sides[0] != sides[1]:
        side = int(math.sqrt(sides[0] * sides[1])) // 8 * 8
        notes.append(f"resolution {sides[0]}x{sides[1]} became {side}, the square of the same area")
        return side
    return int(sides[0])


def _extra(pair: Pair) -> Tables:
    """What is left: other options of sd-scripts, and what brushset sets, refuses or does not know."""
    extra: Tables = {}
    left = {**pair.training, **pair.dataset}
    if left.pop("no_half_vae", False) and pair.training.get("mixed_precision") != "fp16" and not pair.ours:
        pair.notes.append("no_half_vae: brushset keeps the VAE in float32 under fp16 only, where it is needed")
    mine = sorted(key for key in left if key in OURS_TO_SET)
    if mine and not pair.ours:
        pair.notes.append(f"left out, since brushset sets them: {', '.join(mine)}")
    for key, value in left.items():
        if key in OURS_TO_SET or value in (None, False, "", default_of(key)) or value == []:
            continue
        if key not in known_flags()["options"]:
            pair.notes.append(f"not carried over: {said(key, value)}: no option of train_network.py")
        elif reason := refusal(key, value):
            pair.notes.append(f"not carried over: {said(key, value)}: {reason}")
        else:
            extra[key] = (
                ",".join(map(str, value)) if key == "face_crop_aug_range" and isinstance(value, list) else value
            )
    return extra


def _differing(tables: Mapping[str, Any], model: type[BaseModel]) -> Tables:
    """Only what differs from our defaults."""
    bare: Tables = {}
    for key, value in tables.items():
        known = model.model_fields[key]
        if isinstance(known.annotation, type) and issubclass(known.annotation, BaseModel):
            if inner := _differing(value, known.annotation):
                bare[key] = inner
        elif value is not None and value != known.get_default(call_default_factory=True):
            bare[key] = list(value) if isinstance(value, tuple) else value
    return bare


def _accepted(tables: Tables, notes: list[str]) -> StyleSpec:
    """The spec of these tables. Options of [train.extra] that brushset refuses together with the rest are left out."""
    spec = build_spec([("imported", tables)])
    extra = tables.get("train", {}).get("extra", {})
    for key in list(extra):
        alone = build_spec([("imported", {**tables, "train": {**tables["train"], "extra": {key: extra[key]}}})])
        try:
            check_pair(render_dataset(alone, 1), render_training(alone))
        except UsageError as error:
            told = "; ".join(line.partition(": ")[2] for line in str(error).splitlines())
            notes.append(f"not carried over: {said(key, extra.pop(key))}: {told}")
    if "train" in tables and not extra:
        for key in ("extra", "engine"):
            tables["train"].pop(key, None)
    spec = build_spec([("imported", tables)])
    check_pair(render_dataset(spec, 1), render_training(spec))
    return spec
