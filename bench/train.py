"""One training step, side by side: sd-scripts' own, the native engine's, and the native engine's for three styles at once.

    SD_SCRIPTS_DIR=… python bench/train.py               # narrow model, any CPU: about a minute
    python bench/train.py --base random:sd15 --px 256    # full width

Operations are what a step starts, views left out: on a GPU each is a kernel launch, which is what bounds training at
batch 2 to 4. CPU seconds are one thread's, the smallest of `--repeats`. Per style and step; models and data are of random
numbers. Figures of a CPU are ratios of operations and time, not claims about a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from rich.console import Console
from rich.table import Table

from brushset.bases.resolve import resolve_base
from brushset.errors import EnvironmentProblem
from brushset.kohya.source import find_source
from brushset.log import silent
from brushset.records import BaseFile

STYLES = 3


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="random:tiny")
    parser.add_argument("--px", type=int, default=128)
    parser.add_argument("--batch", type=int, default=2, help="samples a style and step")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    base = resolve_base(asked.base, None, silent)
    for trains_text in (False, True):
        print_table(asked, base, trains_text=trains_text)


def print_table(asked: argparse.Namespace, base: BaseFile, *, trains_text: bool) -> None:
    """One table: with the text encoder's LoRA, or without."""
    title = f"{asked.base}, {asked.px} px, batch {asked.batch}, rank {asked.rank}, " + (
        "UNet and text encoder" if trains_text else "UNet alone"
    )
    table = Table("a style's step", "operations", "waits", "CPU s", "× operations", "× CPU s", title=title)
    found = {"sd-scripts": measure_sd_scripts(asked, base, trains_text=trains_text)}
    found["native"] = measure_native(asked, base, 1, trains_text=trains_text)
    found[f"native, {STYLES} styles packed"] = measure_native(asked, base, STYLES, trains_text=trains_text)
    reference = found["sd-scripts"]
    for name, row in found.items():
        if row is None:
            table.add_row(name, *["not here"] * 5)
            continue
        share = STYLES if "packed" in name else 1
        operations, seconds = row["operations"] / share, row["cpu_s"] / share
        ratios = ("", "")
        if reference is not None:
            ratios = (f"{reference['operations'] / operations:.2f}", f"{reference['cpu_s'] / seconds:.2f}")
        table.add_row(name, f"{operations:.0f}", f"{row['synchronising'] / share:.0f}", f"{seconds:.3f}", *ratios)
    Console().print(table)


def measure_sd_scripts(asked: argparse.Namespace, base: BaseFile, *, trains_text: bool) -> dict[str, float] | None:
    """sd-scripts' step, in a child; None where sd-scripts is not there."""
    try:
        source = find_source(fetch=False)
    except EnvironmentProblem:
        return None
    unet = json.loads((Path(base.path) / "unet" / "config.json").read_text(encoding="utf-8"))
    job = {
        "base": base.path, "widths": unet["block_out_channels"], "cross": unet["cross_attention_dim"],
        "rank": asked.rank, "batch": asked.batch, "latent": asked.px // 8, "repeats": asked.repeats,
        "text_encoder": trains_text,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.json"
        path.write_text(json.dumps(job), encoding="utf-8")
        child = [sys.executable, str(Path(__file__).with_name("sd_scripts_step.py")), str(path)]
        environment = {**os.environ, "SD_SCRIPTS_DIR": str(source.folder), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(child, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure_native(asked: argparse.Namespace, base: BaseFile, styles: int, *, trains_text: bool) -> dict[str, float]:
    """The native step of so many styles, in this process."""
    import torch

    from bench.timing import measure
    from brushset.bases.load import load_components
    from brushset.native.dataset import Batch
    from brushset.native.session import open_pack

    torch.set_num_threads(1)
    models = load_components(base, parts=("unet", "text_encoder", "tokenizer"))
    sessions = open_pack([_made_up_style(asked, seed, trains_text=trains_text) for seed in range(styles)], models)
    batch = Batch((asked.px, asked.px), tuple(range(asked.batch)))

    def step() -> None:
        draws = {session.row: session.draw(batch, 0) for session in sessions}
        sessions[0].pack.add_gradients(draws)
        for session in sessions:
            session.set_rates()
        sessions[0].pack.update([session.row for session in sessions], [session.optimizer for session in sessions])

    return measure(step, asked.repeats)


def _made_up_style(asked: argparse.Namespace, seed: int, *, trains_text: bool) -> Any:
    """A style whose images are latents of random numbers."""
    import torch

    from brushset.buckets import BucketRules, plan_buckets
    from brushset.native.dataset import TrainingImage, TrainingSet, plan_length
    from brushset.native.latents import CachedLatents
    from brushset.native.session import Style
    from brushset.native.settings import DatasetKeys, NativeSettings, TrainingKeys

    size = (asked.px, asked.px)
    images = tuple(TrainingImage(Path(f"{n}.png"), f"style{seed}, picture {n}", size) for n in range(asked.batch))
    plan = plan_buckets(
        {image.path.name: size for image in images}, BucketRules(asked.px, 64, 1024, 64, no_upscale=False, enable=False)
    )
    dataset = DatasetKeys(image_dir="images", resolution=asked.px, batch_size=asked.batch)
    training = TrainingKeys(
        seed=seed, output_name="style", network_module="networks.lora", network_dim=asked.rank,
        network_alpha=asked.rank / 2, learning_rate=1e-4, network_train_unet_only=not trains_text, sdpa=True,
        min_snr_gamma=5.0, max_train_epochs=1000,
    )  # fmt: skip
    side = asked.px // 8
    latents = CachedLatents(
        {size: torch.randn(asked.batch, 1, 4, side, side)}, None, {n: n for n in range(asked.batch)}
    )
    found = TrainingSet(images, plan)
    return Style(NativeSettings(Path(), training, dataset), found, plan_length(plan, dataset, training), latents)


if __name__ == "__main__":
    main()
