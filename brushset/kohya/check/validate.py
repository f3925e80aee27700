"""What do Kohya files that somebody already has do, key by key? Pure but for reading: the files, and the folders they name.

A file is recognised by its content. A training and a dataset TOML that are given together are also held against one
another, since the dataset's keys overrule the training's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from brushset.errors import UsageError
from brushset.files import shown
from brushset.kohya.check.dataset import NAMES_IN_DATASET, Subset, check_dataset, rule_findings, subsets_of
from brushset.kohya.check.disk import image_dir_findings, train_data_dir_findings
from brushset.kohya.check.findings import Finding, flat_tables, said
from brushset.kohya.check.findings import Path as Place
from brushset.kohya.check.options import known_flags
from brushset.kohya.check.programs import program_of_file, program_of_json, programs_of, script_of_file, scripts_of
from brushset.kohya.check.rule import Settings
from brushset.kohya.check.training import check_training
from brushset.kohya.check.user_toml import UserToml, read_user_toml

Kind = Literal["training", "dataset", "other", "unreadable"]
Outside = dict[str, tuple[Any, str, Place]]
_OF_VALIDATION = ("validation_seed", "max_validation_steps", "validate_every_n_steps", "validate_every_n_epochs")
_ALSO_FOR_DATASETS = frozenset(
    ("resolution", "cache_latents", "cache_latents_to_disk", "face_crop_aug_range", "caption_extention")
)
_INSTEAD_OF_DATASET = ("train_data_dir", "reg_data_dir", "in_json")


@dataclass(frozen=True)
class FileReport:
    """One file: what it is, in a word and in a line, and what was found in it, by line."""

    file: str
    kind: Kind
    what: str
    findings: tuple[Finding, ...]

    @property
    def wrong(self) -> int:
        """How many of the findings are of the worst kind."""
        return sum(finding.severity == "wrong" for finding in self.findings)


@dataclass(frozen=True)
class KohyaFile:
    """A file as it was recognised. `what` says it in a line; `script` is the other script it was written for, if any."""

    read: UserToml
    name: str
    kind: Kind
    what: str
    script: str = ""


def validate_files(paths: Sequence[Path]) -> list[FileReport]:
    """Validates files, in the order given.

    Raises:
        UsageError: one is not there or may not be read.
    """
    files = classify_files(paths)
    trainings = [file for file in files if file.kind == "training"]
    found: dict[str, list[Finding]] = {file.name: list(file.read.findings) for file in files}
    for file in files:
        findings = found[file.name]
        if file.kind == "training":
            datasets = [other for other in files if other.kind == "dataset" and _belong(file, other, trainings)]
            findings += _training(file, alone=not datasets)
            for dataset in datasets:
                findings += together(file.read.tables, file.name, dataset.read.tables, dataset.name)
        elif file.kind == "dataset":
            training = next((other for other in trainings if _belong(other, file, trainings)), None)
            findings += _dataset(file, training)
        elif file.kind == "other":
            findings.append(_other(file))
    return [_report(file, [item for items in found.values() for item in items]) for file in files]


def classify_files(paths: Sequence[Path]) -> list[KohyaFile]:
    """Reads files and says what each is. Raises as `validate_files` does."""
    return [_classify(_read(path), shown(path)) for path in paths]


def together(
    training: Mapping[str, Any], training_file: str, dataset: Mapping[str, Any], dataset_file: str
) -> list[Finding]:
    """What a training TOML says in vain, since the dataset TOML overrules it or lacks what it needs."""
    flat, findings = flat_tables(training), []
    given, places = {str(path[-1]): value for path, value in flat}, {str(path[-1]): path for path, _ in flat}
    subsets = [subset.settings for subset in subsets_of(dataset, dataset_file, {})]
    for key in (known_flags()["strict"].keys() | {"resolution"}) & given.keys():
        name = NAMES_IN_DATASET.get(key, key)
        theirs = [subset.given[name] for subset in subsets if subset.given.get(name) is not None]
        if theirs and len(theirs) == len(subsets) and not any(_same(key, given[key], value) for value in theirs):
            text, effect = f"{said(key, given[key])} has no effect", f"{dataset_file} says {said(name, theirs[0])}"
            findings.append(Finding(training_file, places[key], "wrong", text, effect, "say it in one of them"))
    for key in _INSTEAD_OF_DATASET:
        if given.get(key):
            text, effect = f"{said(key, given[key])} has no effect", "the dataset TOML is used, with a line in the log"
            findings.append(Finding(training_file, places[key], "wrong", text, effect, f"leave {key} out"))
    splits = [subset["validation_split"] or given.get("validation_split") for subset in subsets]
    for key in _OF_VALIDATION:
        if given.get(key) and not any(splits):
            text = f"{said(key, given[key])} has no effect without validation_split"
            findings.append(
                Finding(training_file, places[key], "wrong", text, "there is no validation", "validation_split = 0.1")
            )
    masked = any(subset.on("conditioning_data_dir", "alpha_mask") for subset in subsets) or given.get("alpha_mask")
    if given.get("masked_loss") and not masked:
        text, effect = "masked_loss = true has no effect", "no subset has a conditioning_data_dir or alpha_mask"
        findings.append(
            Finding(training_file, places["masked_loss"], "wrong", text, effect, "alpha_mask = true in the subset")
        )
    if not any(subset.on("resolution") for subset in subsets) and "resolution" not in given and subsets:
        text = "resolution is given in neither file"
        findings.append(
            Finding(dataset_file, (), "wrong", text, "sd-scripts stops: resolution is required", "resolution = 512")
        )
    return findings


def given_to_datasets(tables: Mapping[str, Any], file: str) -> Outside:
    """What a training TOML gives to datasets, by its name there: value, file and place."""
    strict = known_flags()["strict"].keys() | _ALSO_FOR_DATASETS
    return {
        NAMES_IN_DATASET.get(str(path[-1]), str(path[-1])): (value, file, path)
        for path, value in flat_tables(tables)
        if path[-1] in strict
    }


def _same(key: str, ours: object, theirs: object) -> bool:
    """Whether two files say the same; a resolution is a text in one of them and a number or pair in the other."""
    if key != "resolution":
        return ours == theirs
    first = [int(part) for part in str(ours).split(",") if part.strip().isdigit()]
    second = theirs if isinstance(theirs, list) else [theirs]
    return (first * 2)[:2] == (second * 2)[:2]


def _read(path: Path) -> UserToml:
    try:
        return read_user_toml(path, shown(path))
    except OSError as error:
        raise UsageError(f"{shown(path)}: {(error.strerror or 'cannot be read').lower()}") from error


def _classify(read: UserToml, name: str) -> KohyaFile:
    if read.content is not None:
        return KohyaFile(
            read, name, "other", program_of_json(read.content) or "JSON of a program that is not known here"
        )
    if not read.tables:
        empty = not read.findings
        return KohyaFile(read, name, "other" if empty else "unreadable", "an empty file" if empty else "cannot be read")
    if program := program_of_file(read.tables):
        return KohyaFile(read, name, "other", program)
    if _is_dataset(read.tables):
        return KohyaFile(read, name, "dataset", "dataset TOML")
    flat = {str(path[-1]): value for path, value in flat_tables(read.tables)}
    known = [key for key in flat if key in known_flags()["options"] or scripts_of(key) or programs_of(key)]
    if not known:
        return KohyaFile(read, name, "other", "no Kohya file: it has no key that sd-scripts knows")
    script, shows = script_of_file(flat)
    return KohyaFile(
        read,
        name,
        "training",
        f"training TOML for {script or 'train_network.py'}" + (f": {shows}" if shows else ""),
        script,
    )


def _is_dataset(tables: Mapping[str, Any]) -> bool:
    if "datasets" in tables:
        return True
    levels, options = known_flags()["dataset"], known_flags()["options"]
    keys = tables["general"] if isinstance(tables.get("general"), Mapping) else {}
    return (
        set(tables) == {"general"}
        and bool(keys)
        and all(key in levels["general"] or key not in options for key in keys)
    )


def _belong(training: KohyaFile, dataset: KohyaFile, trainings: Sequence[KohyaFile]) -> bool:
    """Whether a training TOML is run with a dataset TOML: it names it, or it is the only one given."""
    named = {str(path[-1]): value for path, value in flat_tables(training.read.tables)}.get("dataset_config")
    if isinstance(named, str) and Path(named).name == dataset.read.path.name:
        return True
    return len(trainings) == 1


def _training(file: KohyaFile, *, alone: bool) -> list[Finding]:
    findings = check_training(file.read.tables, file.name, script=file.script)
    if file.script:
        effect, fix = f"train_network.py cannot train it: it is for {file.script}", f"run it with {file.script}"
        findings.append(Finding(file.name, (), "another script's", file.what, effect, fix))
    flat = flat_tables(file.read.tables)
    given, places = {str(path[-1]): value for path, value in flat}, {str(path[-1]): path for path, _ in flat}
    if alone and given.get("train_data_dir") and not given.get("dataset_config"):
        findings += train_data_dir_findings(given["train_data_dir"], places["train_data_dir"], file.name)
        outside = given_to_datasets(file.read.tables, file.name)
        settings = Settings({key: value for key, (value, _, _) in outside.items()})
        subset = Subset((), settings, {key: (name, place) for key, (_, name, place) in outside.items()})
        findings += rule_findings(subset, file.name, sd15=not file.script)
    return findings


def _dataset(file: KohyaFile, training: KohyaFile | None) -> list[Finding]:
    outside = given_to_datasets(training.read.tables, training.name) if training else {}
    findings = check_dataset(file.read.tables, file.name, outside=outside)
    for subset in subsets_of(file.read.tables, file.name, outside):
        findings += image_dir_findings(subset, file.name)
        if not _has_folder(subset):
            findings += _default_extension(subset, file.name)
    return list(dict.fromkeys(findings))


def _has_folder(subset: Subset) -> bool:
    folder = subset.settings.given.get("image_dir")
    return isinstance(folder, str) and bool(folder) and Path(folder).is_dir()


def _default_extension(subset: Subset, file: str) -> list[Finding]:
    """Where captions cannot be looked at, a default that passes over every .txt file is still worth its line."""
    settings = subset.settings
    if "caption_extension" in settings.given or settings.on("class_tokens", "metadata_file", "caption_extention"):
        return []
    text = "caption_extension is not given, here or in a training TOML beside it"
    effect = 'its default is ".caption": every .txt file is passed over, and images train with empty captions'
    return [Finding(file, subset.path, "wrong", text, effect, 'caption_extension = ".txt"')]


def _other(file: KohyaFile) -> Finding:
    if file.what.startswith("no Kohya file"):
        return Finding(
            file.name,
            (),
            "wrong",
            file.what,
            "as --config_file it changes nothing, as --dataset_config it stops sd-scripts",
        )
    return Finding(file.name, (), "another script's", f"written for {file.what}", "sd-scripts cannot use it as it is")


def _report(file: KohyaFile, findings: Sequence[Finding]) -> FileReport:
    """What concerns one file, wherever it was found out, with lines, in their order."""
    own = [
        dataclasses.replace(finding, line=finding.line or file.read.line_of(finding.path))
        for finding in findings
        if finding.file == file.name
    ]
    own = sorted(dict.fromkeys(own), key=lambda finding: (finding.line or 0, str(finding.path)))
    return FileReport(file.name, file.kind, file.what, tuple(own))
