"""Writes dataset_configs/<style>.{dataset,training}.toml: what each style in styles/ asks of sd-scripts, to be read and compared.

    python -m scripts.render_configs

The same renderer writes a run's own pair, so a change of a default shows here as a diff. A test renders anew and compares.
"""

from __future__ import annotations

import sys
from pathlib import Path

from brushset.errors import BrushsetError
from brushset.files import toml_text, write_atomic
from brushset.kohya.check.flags import check_pair
from brushset.kohya.render import render_dataset, render_training
from brushset.load import load_style
from brushset.paths import DATASET_CONFIGS, STYLES

NOTE = "# Rendered from styles/{style}.toml by scripts/render_configs.py; do not edit. Paths are relative to a run folder.\n\n"


def render_configs(styles: Path = STYLES) -> dict[str, str]:
    """File name → text, for every style file in the folder."""
    rendered = {}
    for path in sorted(styles.glob("*.toml")):
        spec = load_style(path)
        dataset, training = render_dataset(spec, spec.train.repeats or 1), render_training(spec)
        check_pair(dataset, training)
        for kind, tables in (("dataset", dataset), ("training", training)):
            rendered[f"{spec.name}.{kind}.toml"] = NOTE.format(style=spec.name) + toml_text(tables)
    return rendered


def main() -> int:
    """Writes the files and removes those whose style is gone."""
    try:
        rendered = render_configs()
    except BrushsetError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    for name, text in rendered.items():
        write_atomic(DATASET_CONFIGS / name, text)
    for stale in sorted({path.name for path in DATASET_CONFIGS.glob("*.toml")} - rendered.keys()):
        (DATASET_CONFIGS / stale).unlink()
    print(f"{DATASET_CONFIGS}: {len(rendered)} files")
    return 0


if __name__ == "__main__":
    sys.exit(main())
