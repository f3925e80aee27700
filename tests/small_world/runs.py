"""Runs of the real stages on the small world: styles' pictures in folders with sidecars, orchestrate.STAGES over them.

    runs = make_runs(tmp_path, small_base, {"hatched": make_style("hatched", 24, 1)}, until="convert")
    runs["hatched"].weights        # every epoch that [train] save_every_n_epochs names, and the last

The same call with a later `until` goes on from there, as the front door would. Several styles are trained in one pass and
know one another's adapters, as there, if each is first taken up to "train": of one that keeps several files, up to "choose". What evaluation looks through is patched by
the caller: `monkeypatch.setattr("eval.look.load_extractors", small_extractors)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orchestrate
from brushset.errors import BrushsetError
from brushset.images import source_digest
from brushset.load import build_spec
from brushset.log import EventLog
from brushset.paths import PROJECT, RunPaths, RunsDir
from brushset.records import BaseFile
from brushset.session import Ask
from brushset.spec import StyleSpec
from brushset.together import run_styles_together
from small_world.draw import PX
from small_world.measure import prompts
from small_world.styles import TRIGGERS, Picture
from small_world.training import RECIPE, write_pictures

SECTIONS: dict[str, dict[str, Any]] = {
    "dataset": {"resolution": PX, "min_images": 4, "holdout": 0.25, "holdout_from": 8, "min_sharpness": 0.0,
                "min_contrast": 0.0, "min_mean_luma": 0.0, "max_frame_share": 0.9, "max_duplicate_share": 0.9,
                "near_duplicate_distance": 0, "outlier_deviations": 1000.0},
    "caption": {"captioner": "sidecar"},
    "train": RECIPE | {"engine": "native", "batch_size": 4, "epochs": 20},
    "evaluate": {"prompts": tuple(prompts(8)), "seeds": (1, 2), "steps": 12, "guidance": 4.0, "width": PX, "height": PX,
                 "batch_size": 32, "weights": (0.5, 1.0), "weight": 1.0, "negative_prompt": "", "style_words": "painted"},
}  # fmt: skip
"""A world of flat colours is blurry, dark and framed by an audit's measures for art: those are told off."""


def make_runs(
    runs_dir: Path,
    base: BaseFile,
    pictures: Mapping[str, Sequence[Picture]],
    *,
    until: str | None = "convert",
    **sections: Mapping[str, Any],
) -> dict[str, RunPaths]:
    """Takes the styles' runs up to and including a stage. `sections` are laid over SECTIONS, as in a style file.

    Raises:
        BrushsetError: the first style's that failed.
    """
    runs, asks = RunsDir(runs_dir / "runs"), []
    for name, drawn in pictures.items():
        folder = runs_dir / "pictures" / name
        if not folder.is_dir():
            write_pictures(folder, drawn)
        spec = make_spec(name, base, folder, sections)
        asks.append(Ask(spec, source_digest(spec.images_dir(PROJECT)), "the small world's", until=until))
    logs = {name: EventLog(lambda *_: None) for name in pictures}
    failures = run_styles_together(asks, orchestrate.STAGES, runs, logs, lambda *_: None)
    for error in failures.values():
        raise error
    return {name: _newest(runs, name) for name in pictures}


def make_spec(name: str, base: BaseFile, folder: Path, sections: Mapping[str, Mapping[str, Any]]) -> StyleSpec:
    """A style's settings."""
    tables: dict[str, Any] = {key: {**SECTIONS.get(key, {}), **sections.get(key, {})} for key in SECTIONS | sections}
    tables["dataset"]["images"] = str(folder)
    tables["base"] = {"model": base.path, **tables.get("base", {})}
    return build_spec([("small world", {"name": name, "trigger": TRIGGERS[name], **tables})])


def _newest(runs: RunsDir, name: str) -> RunPaths:
    run = runs.latest(name)
    if run is None:
        raise BrushsetError(f"{runs.style(name)}: no run")
    return run
