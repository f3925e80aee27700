"""What the tables of a TOML pair say of each dataset, before anything is typed: sd-scripts' levels, nearest wins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Tables = dict[str, Any]


@dataclass(frozen=True)
class Levels:
    """The settings of the dataset that is trained on and of the one that is split off whole for validation; None where
    there is no such one. `findings` are what is wrong with the structure.
    """

    trained: Tables | None
    heldout: Tables | None
    findings: list[str] = field(default_factory=list)


def flatten(tables: Mapping[str, Any]) -> Tables:
    """One level of tables is flattened, as sd-scripts does; table names mean nothing."""
    flat: Tables = {}
    for key, value in tables.items():
        flat.update(value if isinstance(value, dict) else {key: value})
    return flat


def merge_levels(tables: Mapping[str, Any], path: Path) -> Levels:
    """[general], then [[datasets]], then its one subset."""
    findings = [f'{path}: key "{key}" is not known; only [general] and [[datasets]] are'
                for key in tables if key not in {"general", "datasets"}]  # fmt: skip
    general, datasets = tables.get("general", {}), tables.get("datasets", [])
    split = [dataset for dataset in datasets if {**general, **dataset}.get("validation_split") == 1.0]
    trained = [dataset for dataset in datasets if dataset not in split]
    for dataset in datasets:
        share = {**general, **dataset}.get("validation_split", 0)
        if share not in (0, 1):
            findings.append(
                f"{path}: validation_split = {share}: the native engine validates on a dataset of its own, with 1.0, and "
                "splits none; set [dataset] holdout and [train] validate_every_n_epochs in the style"
            )
    for what, found, most in (("datasets", trained, 1), ("datasets with validation_split = 1.0", split, 1)):
        if len(found) > most or (what == "datasets" and not found):
            findings.append(
                f'{path}: has {len(found)} {what}; the native engine trains one, others want [train] engine = "kohya"'
            )
    return Levels(_one(general, trained, path, findings), _one(general, split, path, findings), findings)


def _one(general: Tables, datasets: list[Tables], path: Path, findings: list[str]) -> Tables | None:
    """The one dataset with its one subset."""
    if len(datasets) != 1:
        return None
    (dataset,) = datasets
    subsets = dataset.get("subsets", [])
    if len(subsets) != 1:
        findings.append(
            f"{path}: has {len(subsets)} subsets; the native engine trains one dataset with one subset, "
            'others want [train] engine = "kohya"'
        )
        return None
    levels = (general, {key: value for key, value in dataset.items() if key != "subsets"}, subsets[0])
    return {key: value for level in levels for key, value in level.items()}
