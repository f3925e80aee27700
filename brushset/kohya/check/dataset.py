"""What is wrong with a dataset TOML: its keys, types and ranges at all levels, and what its subsets add up to.

sd-scripts' own schema is strict about names and types, and lets `num_repeats = -3`, `resolution = -1` and a missing
`image_dir` pass; the first drops the images with a line in the log, and the training then ends with exit code 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from brushset.kohya.check.findings import Finding, Path, Severity, did_you_mean, is_a, said
from brushset.kohya.check.options import RANGES, known_flags, range_complaint
from brushset.kohya.check.programs import programs_of
from brushset.kohya.check.rule import Settings
from brushset.kohya.check.rules_dataset import SUBSET_RULES

LEVELS = ("general", "datasets", "subsets")
# What the training TOML calls what the dataset TOML calls otherwise.
NAMES_IN_DATASET: Mapping[str, str] = {"train_batch_size": "batch_size", "dataset_repeats": "num_repeats"}
_RANGES: Mapping[str, tuple[int, int | None]] = {
    "num_repeats": (1, None),
    "batch_size": (1, None),
    "resolution": (64, None),
}
_EFFECTS: Mapping[str, str] = {
    "num_repeats": "sd-scripts drops these images with a line in its log, and ends with exit code 0 where none are left",
    "batch_size": "sd-scripts divides by it",
    "resolution": "sd-scripts accepts it, and fails or trains on something else",
}


@dataclass(frozen=True)
class Subset:
    """One [[datasets.subsets]] with all that reaches it, and where each value was given."""

    path: Path
    settings: Settings
    places: Mapping[str, tuple[str, Path]] = field(repr=False)


def check_dataset(
    tables: Mapping[str, Any], file: str, *, outside: Mapping[str, tuple[Any, str, Path]]
) -> list[Finding]:
    """All findings on a dataset TOML.

    Args:
        tables: the file's content.
        file: its name in the findings.
        outside: what the training TOML gives, by its name in datasets: value, file and place.
    """
    findings = _structure(tables, file)
    for subset in subsets_of(tables, file, outside):
        findings += rule_findings(subset, file)
    return _once(findings)


def subsets_of(tables: Mapping[str, Any], file: str, outside: Mapping[str, tuple[Any, str, Path]]) -> list[Subset]:
    """Every subset with all that reaches it. Precedence: subset, dataset, general, training TOML, default."""
    found = []
    for index, dataset in enumerate(_tables(tables.get("datasets"))):
        for number, subset in enumerate(_tables(dataset.get("subsets"))):
            path: Path = ("datasets", index, "subsets", number)
            given = {key: value for key, (value, _, _) in outside.items()}
            places = {key: (source, place) for key, (_, source, place) in outside.items()}
            layers = ((("general",), tables.get("general")), (path[:2], dataset), (path, subset))
            for place, layer in layers:
                for key, value in layer.items() if isinstance(layer, Mapping) else ():
                    if key != "subsets":
                        given[key] = value
                        places[key] = (file, (*place, key))
            found.append(Subset(path, Settings(given), places))
    return found


def rule_findings(subset: Subset, file: str, *, sd15: bool = True) -> list[Finding]:
    """What the rules say of one subset; none where a value has not even the right type. `sd15` is false for a file of
    another script of sd-scripts.
    """
    known = known_flags()["dataset"]["datasets"]
    given = subset.settings.given
    if not all(_fits_type(value, known[key]) or key == "resolution" for key, value in given.items() if key in known):
        return []
    found = []
    for rule in SUBSET_RULES:
        if (sd15 or not rule.sd15_only) and rule.holds(subset.settings):
            source, path = subset.places.get(rule.key, (file, (*subset.path, rule.key)))
            text, effect, fix = rule.told(subset.settings)
            found.append(Finding(source, path, rule.severity, text, effect, fix))
    return found


def _structure(tables: Mapping[str, Any], file: str) -> list[Finding]:
    """Names, types and ranges at each level, as the file stands."""
    found = []
    for name in tables:
        if name not in ("general", "datasets"):
            text = f'unknown table "{name}"{did_you_mean(name, ("general", "datasets"))}'
            found.append(Finding(file, (name,), "wrong", text, "sd-scripts stops", "[general] or [[datasets]]"))
    general = tables.get("general", {})
    found += _level(general, "general", ("general",), file)
    datasets = tables.get("datasets", [])
    if not isinstance(datasets, list):
        found.append(
            Finding(file, ("datasets",), "wrong", "datasets is one table", "sd-scripts stops", "[[datasets]], doubled")
        )
    elif not datasets:
        text, effect = (
            "no [[datasets]], so there is nothing to train on",
            "sd-scripts ends with exit code 0 and no file",
        )
        found.append(Finding(file, (), "wrong", text, effect))
    for index, dataset in enumerate(_tables(datasets)):
        found += _dataset(dataset, ("datasets", index), file)
    return found


def _dataset(dataset: Mapping[str, Any], path: Path, file: str) -> list[Finding]:
    subsets = dataset.get("subsets")
    kind = _kind(_tables(subsets))
    own = {key: value for key, value in dataset.items() if key != "subsets"}
    found = _level(own, f"datasets{kind}", path, file)
    if not subsets:
        text = "no subsets, which sd-scripts takes for a ControlNet dataset"
        effect, fix = "it ends with exit code 0 and no file", "[[datasets.subsets]] with an image_dir"
        return [*found, Finding(file, (*path, ""), "wrong", text, effect, fix)]
    if not isinstance(subsets, list):
        text, fix = "subsets is one table", "[[datasets.subsets]], doubled"
        return [*found, Finding(file, (*path, "subsets"), "wrong", text, "sd-scripts stops", fix)]
    seen: set[object] = set()
    for number, subset in enumerate(_tables(subsets)):
        place: Path = (*path, "subsets", number)
        found += _level(subset, f"subsets{kind}", place, file)
        folder = subset.get("image_dir")
        if not folder and "metadata_file" not in subset:
            effect = (
                "sd-scripts stops" if folder is None else "sd-scripts finds no images there and ends with exit code 0"
            )
            found.append(Finding(file, (*place, "image_dir"), "wrong", '"image_dir" is missing', effect))
        elif folder and folder in seen:
            text = f"{said('image_dir', folder)} is in this dataset already"
            found.append(
                Finding(file, (*place, "image_dir"), "wrong", text, "sd-scripts ignores the later one", "num_repeats")
            )
        seen.add(folder)
    return found


def _kind(subsets: list[Mapping[str, Any]]) -> str:
    """Which of sd-scripts' three kinds of dataset it is: the suffix of its levels in flags.json."""
    if subsets and all("conditioning_data_dir" in subset for subset in subsets):
        return " of masks"
    return " of metadata" if subsets and all("metadata_file" in subset for subset in subsets) else ""


def _level(table: object, level: str, path: Path, file: str) -> list[Finding]:
    if not isinstance(table, Mapping):
        text = f"{path[-1]} is no table"
        return [Finding(file, path, "wrong", text, "sd-scripts stops", f"[{path[-1]}]")]
    known, found = known_flags()["dataset"][level], []
    for key, value in table.items():
        place = (*path, key)
        if key not in known:
            found.append(_unknown(key, level, place, file))
        elif not _fits_type(value, known[key]):
            text = f"{key} = {value!r}: expected {known[key]}"
            found.append(Finding(file, place, "wrong", text, "sd-scripts stops with MultipleInvalid"))
        elif complaint := _range(key, value):
            found.append(Finding(file, place, "wrong", *complaint))
    return found


def _unknown(key: str, level: str, path: Path, file: str) -> Finding:
    levels, effect = known_flags()["dataset"], "sd-scripts stops with MultipleInvalid"
    severity: Severity = "wrong"
    here = next((name for name in LEVELS if key in levels[name] and name != level), "")
    if here:
        place = "[general]" if here == "general" else "[[datasets]]" if here == "datasets" else "[[datasets.subsets]]"
        text, fix = f'unknown key "{key}" at this level', f"it belongs to {place}"
    elif key in known_flags()["options"]:
        named = NAMES_IN_DATASET.get(key)
        text = f'unknown key "{key}"'
        fix = f'here it is called "{named}"' if named else "it belongs to the training TOML"
    elif (programs := programs_of(key)) and not did_you_mean(key, levels["datasets"]):
        text, fix, severity = f'"{key}" is a key of {programs[0]}', "", "another script's"
    else:
        text, fix = f'unknown key "{key}"{did_you_mean(key, {**levels[level], **levels["subsets"]})}', ""
    return Finding(file, path, severity, text, effect, fix)


def _range(key: str, value: object) -> tuple[str, str] | None:
    if key in _RANGES:
        least = _RANGES[key][0]
        items = value if isinstance(value, list) else [value]
        wrong = any(isinstance(item, int) and item < least for item in items)
        return (f"{said(key, value)}: expected {least} or more", _EFFECTS[key]) if wrong else None
    text, effect = range_complaint(key, value) if key in RANGES else ("", "")
    return (text, effect) if text else None


def _fits_type(value: object, kinds: str) -> bool:
    return any(is_a(value, kind, strict=True) for kind in kinds.split(" or "))


def _tables(value: object) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def _once(findings: list[Finding]) -> list[Finding]:
    """Without what several subsets inherit, and would say several times."""
    return list(dict.fromkeys(findings))
