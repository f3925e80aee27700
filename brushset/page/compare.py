"""The page that holds several runs side by side: what was set otherwise, what came of it, and how sure that is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brushset.manifest import RunManifest
from brushset.page.compare_plots import Traced, overlay_plots
from brushset.page.metrics import decimals_of, title_of
from brushset.page.pictures import GridRow, main_cell, thumbnail
from brushset.page.project import StyleRun
from brushset.page.template import render_page
from brushset.records import Cell, Difference, PlaceValues
from brushset.spec import StyleSpec

TEMPLATE = "compare.html.j2"
GRID_ROWS = 8
_SAMPLING = frozenset(f"evaluate.{name}" for name in ("negative_prompt", "steps", "guidance", "width", "height"))
_SHORT_HASH = 12
_LONG = 240  # letters of a value that are shown


@dataclass(frozen=True)
class ComparedRun:
    """A run, and what it is called in the tables. `missing` are the stages that it has not done."""

    letter: str
    run: StyleRun
    spec: StyleSpec
    manifest: RunManifest | None
    values: PlaceValues | None
    missing: tuple[str, ...]

    @property
    def main(self) -> Cell | None:
        """The adapter alone, as it is judged."""
        if self.run.evaluation is None:
            return None
        weight = self.run.choice.weight if self.run.choice else self.spec.evaluate.weight
        return main_cell(self.run.evaluation, self.run.style, weight)


@dataclass(frozen=True)
class AgainstFirst:
    """How one run differs from the first."""

    letter: str
    differences: tuple[Difference, ...]


@dataclass(frozen=True)
class Row:
    """Something of each run, in their order."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class SharedGrid:
    """Pictures of the same places, side by side; `places` is how many there are."""

    columns: tuple[str, ...]
    rows: tuple[GridRow, ...]
    places: int


def render_compare(runs: Sequence[ComparedRun], against: Sequence[AgainstFirst]) -> str:
    """The page's HTML."""
    return render_page(
        TEMPLATE,
        {
            "runs": runs,
            "machinery": [each.letter for each in runs if _tone(each) == "machinery"],
            "settings": setting_rows([each.spec for each in runs]),
            "surroundings": surrounding_rows(runs),
            "outcomes": outcome_rows(runs),
            "otherwise": sampled_otherwise(runs),
            "plots": overlay_plots([Traced(each.letter, each.run.trained, each.run.choice) for each in runs]),
            "grid": shared_grid(runs),
            "tables": [(each, [difference_line(item) for item in each.differences]) for each in against],
            "decimals": decimals_of,
            "title": title_of,
        },
    )


def compare_json(runs: Sequence[ComparedRun], against: Sequence[AgainstFirst]) -> dict[str, Any]:
    """The same for machines."""
    return {
        "runs": [
            {
                "letter": each.letter,
                "style": each.run.style,
                "folder": str(each.run.root),
                "missing": list(each.missing),
                "verdict": (each.run.claims or {}).get("verdict"),
                "use": (each.run.claims or {}).get("use"),
            }
            for each in runs
        ],
        "settings": {row.name: list(row.values) for row in setting_rows([each.spec for each in runs])},
        "sampled_otherwise": sampled_otherwise(runs),
        "surroundings": {row.name: list(row.values) for row in surrounding_rows(runs)},
        "differences": [
            {"letter": each.letter, "scores": [item.model_dump(mode="json") for item in each.differences]}
            for each in against
        ],
    }


def setting_rows(specs: Sequence[StyleSpec]) -> list[Row]:
    """The settings in which the runs differ, by their dotted names; what is the same in all, default or not, is left out."""
    flat = [_flat(spec.model_dump(mode="json")) for spec in specs]
    names = dict.fromkeys(name for each in flat for name in each)
    return [
        Row(name, values)
        for name in names
        if len(set(values := tuple(_told(each[name]) if name in each else "–" for each in flat))) > 1
    ]


def surrounding_rows(runs: Sequence[ComparedRun]) -> list[Row]:
    """What surrounded the runs where that differs: engine, machine, versions, base model, images."""
    each = [_surroundings(item) for item in runs]
    names = dict.fromkeys(name for found in each for name in found)
    rows = [Row(name, tuple(found.get(name, "–") for found in each)) for name in names]
    return [row for row in rows if len(set(row.values)) > 1]


def sampled_otherwise(runs: Sequence[ComparedRun]) -> list[str]:
    """By which settings the runs' images differ besides the adapter: part of any difference is theirs."""
    rows = setting_rows([each.spec for each in runs])
    bases = {each.run.trained.base_sha256 for each in runs if each.run.trained}
    return [row.name for row in rows if row.name in _SAMPLING] + (["the base model"] if len(bases) > 1 else [])


def outcome_rows(runs: Sequence[ComparedRun]) -> list[Row]:
    """What came of each: verdict, what to use, how long it took."""
    each = [_outcome(item) for item in runs]
    names = dict.fromkeys(name for found in each for name in found)
    return [Row(name, tuple(found.get(name, "–") for found in each)) for name in names]


def shared_grid(runs: Sequence[ComparedRun]) -> SharedGrid | None:
    """The first places that all runs sampled: the first run's base, then each adapter; None where there are none."""
    columns: list[tuple[str, Mapping[tuple[str, int], Path]]] = []
    for each in runs:
        main, evaluation = each.main, each.run.evaluation
        if main is None or evaluation is None:
            continue
        places = [(prompt, seed) for prompt in evaluation.prompts for seed in evaluation.seeds]
        if not columns:
            base = next((cell for cell in evaluation.cells if cell.role == "base" or not cell.mix), None)
            columns += [(f"base of {each.letter}", _files(each, base, places))] if base else []
        columns.append((f"{each.letter}: {main.name}", _files(each, main, places)))
    if len(columns) < 2:
        return None
    shared = [place for place in columns[0][1] if all(place in files for _, files in columns)]
    rows = tuple(
        GridRow(prompt, seed, tuple(thumbnail(files[prompt, seed]) for _, files in columns))
        for prompt, seed in shared[:GRID_ROWS]
    )
    return SharedGrid(tuple(title for title, _ in columns), rows, len(shared)) if rows else None


def difference_line(item: Difference) -> str:
    """What the difference says in words; empty where it has no interval."""
    found = item.difference
    if found.low is None or found.high is None:
        return ""
    if found.low <= 0 <= found.high:
        return "cannot be told apart"
    if item.higher_is_better is None:
        return "higher" if found.low > 0 else "lower"
    return "better" if (found.low > 0) == item.higher_is_better else "worse"


def _files(each: ComparedRun, cell: Cell, places: Sequence[tuple[str, int]]) -> dict[tuple[str, int], Path]:
    return {place: each.run.root / path for place, path in zip(places, cell.images, strict=True)}


def _tone(each: ComparedRun) -> str:
    return str((each.run.claims or {}).get("verdict", {}).get("tone", ""))


def _surroundings(each: ComparedRun) -> dict[str, str]:
    manifest, trained = each.manifest, each.run.trained
    found: dict[str, str] = {}
    if trained:
        found |= {
            "engine": trained.engine,
            "engine version": trained.engine_version[:_SHORT_HASH],
            "device of training": trained.device,
            "base model SHA-256": trained.base_sha256[:_SHORT_HASH],
        }
    if manifest:
        found |= {
            "commit": manifest.commit[:_SHORT_HASH] + (" and uncommitted changes" if manifest.dirty else ""),
            "machine": f"{manifest.platform}, {manifest.device}",
            "Python": manifest.python,
            "lock file": manifest.lock_sha256[:_SHORT_HASH],
            **manifest.packages,
            "images and captions": _images(manifest),
        }
    return found


def _images(manifest: RunManifest) -> str:
    """How many files, and a mark that two runs on the very same share."""
    from brushset.files import sha256_json

    return f"{len(manifest.images)} files, {sha256_json(sorted(manifest.images.values()))[:8]}"


def _outcome(each: ComparedRun) -> dict[str, str]:
    claims, trained = each.run.claims or {}, each.run.trained
    found = {"verdict": str(claims.get("verdict", {}).get("headline", f"none: {each.run.status}"))}
    choice = each.run.choice
    if choice:
        found["epoch and weight"] = f"{choice.epoch} at {choice.weight:g}"
        found["chosen by"] = choice.decided_by + ("" if choice.meaningful else ", made-up parts")
        found["why"] = choice.reason
    if trained:
        found["steps"] = f"{trained.steps} in {trained.epochs} epoch{'' if trained.epochs == 1 else 's'}"
        found["training, seconds"] = f"{trained.seconds:.0f}"
    if each.run.seconds:
        found["all stages, seconds"] = f"{sum(each.run.seconds.values()):.0f}"
    return found


def _flat(tables: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tables.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{above}{key}.")
        else:
            found[f"{above}{key}"] = value
    return found


def _told(value: object) -> str:
    text = value if isinstance(value, str) else "none" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONG else f"{text[:_LONG]}…"
