"""Three styles from folders of images to LoRA files, by our own command line: how long, and in what parts?

    python bench/folder_to_files.py --out lines.jsonl                        # on a GPU: 7,200 samples in all at 512 px
    python bench/folder_to_files.py --images 4 --epochs 2 --px 64            # a narrow model on any CPU

A real `orchestrate.py all --engine native --until train` in a process of its own, with its imports, the audit, the
preparation and every file written; captions lie beside the images. Images and weights are random numbers, all images of
one size, so that every batch can be shared: what real sets share stands in docs/LOG.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.lines import tell
from brushset.paths import PROJECT

STYLES = ("anime", "watercolor", "cartoon")


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Trains, and prints a line."""
    asked = _parse(argv)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for seed, style in enumerate(STYLES):
            draw_images(root / style, asked.images, asked.px, seed)
        begun = time.monotonic()
        done = subprocess.run(_command(asked, root), capture_output=True, text=True, check=False, timeout=asked.most)
        wall = time.monotonic() - begun
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    row: dict[str, Any] = {
        "stage": "folders to files",
        "styles": len(STYLES),
        "batch": asked.batch,
        "wall_s": round(wall, 1),
    }
    if done.returncode:
        row["failed"] = f"exit {done.returncode}: {(done.stderr.strip().splitlines() or ['nothing said'])[-1]}"
    else:
        samples = len(STYLES) * asked.images * asked.epochs
        told = events[-1].items()
        times = {key: value for key, value in told if isinstance(value, float) and key != "time"}
        row |= {"samples": samples, "samples_per_s": round(samples / wall, 2), "phases": times}
    tell(row, asked.out)
    return [row]


def draw_images(folder: Path, count: int, px: int, seed: int) -> None:
    """Coarse coloured noise, each its own, with a caption beside it."""
    import numpy as np
    from PIL import Image

    folder.mkdir()
    numbers = np.random.default_rng(seed)
    for number in range(count):
        coarse = Image.fromarray(numbers.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((px, px), Image.Resampling.BICUBIC).save(folder / f"{number:04d}.png")
        (folder / f"{number:04d}.txt").write_text(f"thing number {number}\n", encoding="utf-8")


def _command(asked: argparse.Namespace, root: Path) -> list[str]:
    folders = [word for style in STYLES for word in ("--images", f"{style}={root / style}")]
    settings = {
        "dataset.resolution": asked.px, "dataset.min_images": 1, "dataset.holdout": 0, "caption.captioner": "sidecar",
        "train.batch_size": asked.batch, "train.epochs": asked.epochs, "train.repeats": 1, "train.clip_skip": 1,
        "train.min_bucket_reso": min(256, asked.px), "train.save_every_n_epochs": asked.epochs,
        "train.mixed_precision": asked.precision, "train.save_state_minutes": 0, "dataset.accept": "too-small",
    }  # fmt: skip
    return [
        sys.executable, str(PROJECT / "orchestrate.py"), "all", *folders, "--engine", "native", "--until", "train", "--json",
        "--base-model", asked.base, "--runs-dir", str(root / "runs"),
        *[word for key, value in settings.items() for word in ("--set", f"{key}={value}")],
    ]  # fmt: skip


def _parse(argv: list[str] | None) -> argparse.Namespace:
    import torch

    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="random:sd15" if gpu else "random:tiny")
    parser.add_argument("--px", type=int, default=512 if gpu else 128)
    parser.add_argument("--images", type=int, default=120 if gpu else 8, help="a style")
    parser.add_argument("--epochs", type=int, default=20 if gpu else 2)
    parser.add_argument("--batch", type=int, default=4 if gpu else 2, help="a style")
    parser.add_argument("--precision", default="bf16" if gpu else "no")
    parser.add_argument("--most", type=float, default=240.0, help="seconds after which it is stopped")
    parser.add_argument("--out", type=Path, help="file that the line is added to")
    return parser.parse_args(argv)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
