r"""How a LoRA learns in the small world, by step: held-out loss with the right trigger, a wrong one and none, and what is
drawn with each.

    python bench/learning.py --out /tmp/curves                                     # hatched and dusk, three seeds each
    python bench/learning.py --out /tmp/curves --styles dusk --sets style --pictures 6 --epochs 120 --every 20 \
        --set batch_size=6 network_dim=16 network_alpha=16.0 lr_scheduler=constant lr_warmup_ratio=0.0
                                                                                   # over-training: six pictures, no plain ones

The base is tests/small_world's. All seeds of a style are trained in one pass by the native engine. The loss is the mean
squared error of the predicted noise on 12 pictures never trained on, at ten timesteps, less what the base alone has; what is
drawn is eight captions at weight 1, and how much of the style small_world.eyes sees there (its own pictures have 1).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
os.environ["HF_HUB_OFFLINE"] = "1"

from brushset.bases.resolve import resolve_base
from brushset.files import parse_toml_value
from brushset.generator import MultiLoRAGenerator
from brushset.log import silent
from brushset.records import BaseFile
from small_world import folder
from small_world.measure import Ruler, amount_of, draw_mixes, prompts
from small_world.styles import STYLES, TRIGGERS, make_gated, make_style
from small_world.training import GATED, RECIPE, make_job, train_native

WRONG = "vexmoor"
"""Nobody's trigger."""
_LOSSES = (
    ("right", "#0072b2", "right trigger"),
    ("wrong", "#d55e00", "wrong trigger"),
    ("none", "#999999", "no trigger"),
    ("train", "#009e73", "right, on the training set"),
)
_DRAWN = (("drawn", "#0072b2", "right trigger"), ("drawn_wrong", "#d55e00", "wrong trigger"))
SETS = {"gated": (make_gated, GATED), "style": (make_style, RECIPE)}


@dataclass(frozen=True)
class Point:
    """One checkpoint of one seed: losses less the base's, by what stood before the captions; `train` on the set itself;
    how much of the style is drawn with the right trigger and with a wrong one.
    """

    step: int
    right: float
    wrong: float
    none: float
    train: float
    drawn: float
    drawn_wrong: float


def main() -> None:
    """Trains, measures, prints and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--styles", nargs="+", default=["hatched", "dusk"], choices=list(STYLES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--sets", choices=list(SETS), default="gated")
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--every", type=int, default=5, help="epochs between checkpoints")
    parser.add_argument("--set", nargs="*", default=[], help="keys of [train], as key=value")
    parser.add_argument("--out", type=Path, required=True, help="folder for the curves' picture")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        base = resolve_base(str(folder.unpack(Path(work, "base"))), None, silent)
        found = {}
        for style in asked.styles:
            found[style] = measure_style(Path(work, style), base, style, asked)
            _print(style, found[style])
        _draw(found, asked)


def measure_style(work: Path, base: BaseFile, style: str, asked: argparse.Namespace) -> dict[int, list[Point]]:
    """Seed → points."""
    make, recipe = SETS[asked.sets]
    changes = recipe | dict(_setting(text) for text in asked.set)
    changes |= {"epochs": asked.epochs, "save_every_n_epochs": asked.every}
    started = time.process_time()
    jobs = [
        make_job(work / str(seed), base, style, make(style, asked.pictures, seed), **{**changes, "seed": seed})
        for seed in asked.seeds
    ]
    train_native(*jobs)
    print(f"{style}: {time.process_time() - started:.0f} CPU s for {len(jobs)} × {jobs[0].steps} steps", flush=True)
    held = Ruler.of(base, make_style(style, 12, 1000))
    print(f"{style}: base {held.loss(None):.4f}", flush=True)
    found = {}
    for seed, job in zip(asked.seeds, jobs, strict=True):
        trained = Ruler.of(base, make_style(style, asked.pictures, seed)[:12])
        files = sorted(job.output_dir.glob("*.safetensors"), key=_epoch)
        steps = [min(_epoch(file), asked.epochs) * job.steps // asked.epochs for file in files]
        found[seed] = [measure_file(file, step, style, held, trained) for file, step in zip(files, steps, strict=True)]
    return found


def measure_file(file: Path, step: int, style: str, held: Ruler, trained: Ruler) -> Point:
    """One checkpoint."""
    trigger, bare = TRIGGERS[style], held.loss(None)
    generator = MultiLoRAGenerator(held.base, device="cpu", exact=False)
    generator.load_lora(file, style)
    mix = ((style, 1.0),)
    drawn = draw_mixes(
        generator, {word: ([f"{word}, {text}" for text in prompts(8)], mix) for word in (trigger, WRONG)}
    )
    return Point(
        step=step,
        right=held.loss(file, trigger) - bare,
        wrong=held.loss(file, WRONG) - bare,
        none=held.loss(file) - bare,
        train=trained.loss(file, trigger) - trained.loss(None),
        drawn=amount_of(style, drawn[trigger]),
        drawn_wrong=amount_of(style, drawn[WRONG]),
    )


def _epoch(file: Path) -> int:
    """Of a checkpoint's name; the last has none."""
    tail = file.stem.rpartition("-")[2]
    return int(tail) if tail.isdigit() else 10**6


def _setting(text: str) -> tuple[str, Any]:
    key, _, value = text.partition("=")
    return key, parse_toml_value(value)


def _print(style: str, found: dict[int, list[Point]]) -> None:
    for seed, points in found.items():
        for point in points:
            print(
                f"{style} seed {seed} step {point.step}: loss - base: right {point.right:+.4f} wrong {point.wrong:+.4f} "
                f"none {point.none:+.4f} train {point.train:+.4f}; drawn: {point.drawn:.2f} wrong {point.drawn_wrong:.2f}",
                flush=True,
            )


def _draw(found: dict[str, dict[int, list[Point]]], asked: argparse.Namespace) -> None:
    """Two panels a style, losses and what is drawn: a line a seed and kind."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(2, len(found), figsize=(5 * len(found), 7), squeeze=False, layout="constrained")
    for column, (style, seeds) in enumerate(found.items()):
        above, below = panels[:, column]
        _lines(above, seeds, _LOSSES)
        _lines(below, seeds, _DRAWN)
        above.set(title=f"{style}, {asked.sets}, {asked.pictures} pictures", ylabel="loss - base")
        below.set(xlabel="step", ylabel="of the style in images")
    for panel in panels[:, 0]:
        panel.legend()
    file = asked.out / f"{'-'.join(found)}-{asked.sets}-{asked.pictures}.png"
    figure.savefig(file, dpi=90)
    print(file)


def _lines(panel: Any, seeds: dict[int, list[Point]], kinds: Sequence[tuple[str, str, str]]) -> None:
    for kind, colour, label in kinds:
        for number, points in enumerate(seeds.values()):
            steps, values = [0, *(p.step for p in points)], [0.0, *(getattr(p, kind) for p in points)]
            panel.plot(steps, values, color=colour, marker=".", label=None if number else label)
    panel.axhline(0, color="black", linewidth=0.5)


if __name__ == "__main__":
    main()
