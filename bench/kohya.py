"""How fast does sd-scripts train, as it comes and as brushset launches it, one style and several at once?

    python bench/kohya.py                                     # full size on a GPU: about six minutes
    python bench/kohya.py --size tiny --images 8 --batch 2    # the narrow model, on any machine: about two

Every row is a real `accelerate launch train_network.py` on the same images, epochs, batch, rank and precision. "stock"
leaves whatever concerns speed at sd-scripts' defaults; "tuned" is what brushset renders; between them stands each
change alone (`--variants all`). Weights and images are random: the figures are of speed, never of quality.

- start-up: from the launch to the first step begun: imports, models, cached latents.
- samples/s: the samples after each process's first step, over the time they took, gaps between epochs included.
- gap: from an epoch's last step to the next one's first, less a median step; the mean over the epochs.
- CPU s: of all processes of the launch, start-up included; steadier than times on a machine that others use too.
- memory: the largest sum over a launch's processes, shared pages counted once (main), or above what the GPU held
  before (GPU).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rich.console import Console
from rich.table import Table

from bench.launches import CHANGES, SAMPLE_S, Launched, Work, launch, lay_out
from bench.lines import add_line
from brushset.bases.resolve import resolve_base
from brushset.cli.devices import list_gpus, slot_environment
from brushset.cli.mps import mps_environment
from brushset.errors import BrushsetError
from brushset.kohya.source import find_source
from brushset.log import silent
from brushset.manifest import device_name
from brushset.paths import PROJECT, RunPaths

TINY_SCRIPT = PROJECT / "tests" / "tiny_sd_scripts" / "train_network.py"
VARIANTS = (*CHANGES, "tuned")

COLUMNS = (
    "variant", "batch", "at once", "samples", "start-up s", "samples/s", "× stock", "gap s", "CPU s", "main GB", "GPU GB", "wall s",
)  # fmt: skip

console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 140, highlight=False)


@dataclass(frozen=True)
class Row:
    """One stage of the bench: a variant at one batch size, so many at once."""

    variant: str
    batch: int
    at_once: int
    samples: int
    startup_s: float
    samples_per_s: float
    epoch_gap_s: float
    cpu_s: float
    main_gb: float
    gpu_gb: float
    wall_s: float
    error: str = ""


def measure(work: Work, variant: str, batch: int, at_once: int, environ: dict[str, str]) -> Row:
    """One row: as many launches as `at_once` at the same time, each in a folder of its own."""
    launched: list[Launched] = []
    errors: list[str] = []

    def one(run: RunPaths, slot: int) -> None:
        try:
            slotted = slot_environment(slot, at_once, gpus=(), environ=environ)
            launched.append(launch(run, work, slotted, batch))
        except BrushsetError as error:
            errors.append(str(error))

    held = _gpu_gb()
    peak, done = [held], threading.Event()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        runs = [lay_out(Path(folder, str(slot)), work, variant, batch) for slot in range(at_once)]
        threads = [threading.Thread(target=one, args=(run, slot)) for slot, run in enumerate(runs)]
        gpu = threading.Thread(target=_watch_gpu, args=(peak, done), daemon=True)
        started = time.monotonic()
        for thread in (gpu, *threads):
            thread.start()
        for thread in threads:
            thread.join()
        wall = time.monotonic() - started
        done.set()
        gpu.join()
    if errors:
        return Row(variant, batch, at_once, 0, 0, 0, 0, 0, 0, 0, round(wall, 1), errors[0])
    return Row(
        variant, batch, at_once,
        samples=sum(each.samples for each in launched),
        startup_s=round(max(each.first_step_begun for each in launched), 1),
        samples_per_s=round(_rate(launched, batch), 3),
        epoch_gap_s=round(statistics.mean([gap for each in launched for gap in _gaps(each, work.epochs)] or [0.0]), 2),
        cpu_s=round(sum(each.cpu_s for each in launched), 1),
        main_gb=round(sum(each.main_gb for each in launched), 2),
        gpu_gb=round(max(peak) - held, 2),
        wall_s=round(wall, 1),
    )  # fmt: skip


def _rate(launched: Sequence[Launched], batch: int) -> float:
    """Samples a second of all launches together, from the earliest first step's end to the latest last step's."""
    samples = sum(each.samples - batch for each in launched)
    begun, ended = min(each.step_ends[0] for each in launched), max(each.step_ends[-1] for each in launched)
    return samples / (ended - begun) if ended > begun else 0.0


def _gaps(launched: Launched, epochs: int) -> list[float]:
    ends, an_epoch = launched.step_ends, launched.steps // epochs
    steps = [after - before for before, after in pairwise(ends)]
    if not steps:
        return []
    return [max(0.0, steps[an_epoch * epoch - 1] - statistics.median(steps)) for epoch in range(1, epochs)]


def _watch_gpu(peak: list[float], done: threading.Event) -> None:
    while not done.wait(SAMPLE_S) and list_gpus():
        peak.append(_gpu_gb())


def _gpu_gb() -> float:
    """What all GPUs hold, relative to what was free of them: only differences of it mean something."""
    return -sum(gpu.free_gb for gpu in list_gpus())


def show(rows: Sequence[Row]) -> None:
    """The table. "× stock" is against stock at the same batch, one at a time."""
    table = Table(*COLUMNS)
    stock = {row.batch: row.samples_per_s for row in rows if (row.variant, row.at_once) == ("stock", 1)}
    for row in rows:
        if row.error:
            table.add_row(row.variant, str(row.batch), str(row.at_once), "failed", *[""] * 7, str(row.wall_s))
            continue
        times = row.samples_per_s / stock[row.batch] if stock.get(row.batch) else 0.0
        numbers = (row.batch, row.at_once, row.samples, row.startup_s, row.samples_per_s, f"{times:.2f}" if times else "",
                   row.epoch_gap_s, row.cpu_s, row.main_gb, row.gpu_gb or "", row.wall_s)  # fmt: skip
        table.add_row(row.variant, *map(str, numbers))
    console.print(table)
    for row in rows:
        if row.error:
            console.print(f"{row.variant}, batch {row.batch}, {row.at_once} at once: {row.error}", markup=False)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", "full"), default="full")
    parser.add_argument("--batch", type=int, nargs="+", default=[2, 4], help="batch sizes")
    parser.add_argument("--styles", type=int, nargs="*", default=[3], help="so many at once, besides one")
    parser.add_argument("--variants", nargs="+", default=["stock", "tuned"], choices=("all", *VARIANTS))
    parser.add_argument(
        "--together", nargs="*", default=["stock", "tuned"], help="variants that are so many at once, too"
    )
    parser.add_argument("--images", type=int, default=48, help="a multiple of every batch size gives equal steps")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--resolution", type=int, help="default 512, tiny 128")
    parser.add_argument("--precision", choices=("no", "fp16", "bf16"), help="default bf16 on a GPU, no on a CPU")
    parser.add_argument("--mps", action="store_true", help="several at once also under CUDA MPS")
    parser.add_argument("--out", type=Path, default=Path("bench-kohya.jsonl"), help="a JSON line a row, as it goes")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Runs the bench; returns the exit code."""
    asked = parse(argv)
    try:
        source = find_source()
        base = resolve_base("random:tiny" if asked.size == "tiny" else "random:sd15", None, silent)
    except BrushsetError as error:
        console.print(f"error: {error}", markup=False)
        return error.exit_code
    gpus = list_gpus()
    script = TINY_SCRIPT if asked.size == "tiny" else source.script
    resolution = asked.resolution or (128 if asked.size == "tiny" else 512)
    work = Work(
        base, source, script, asked.images, asked.epochs, resolution, asked.precision or ("bf16" if gpus else "no")
    )
    console.print(f"{device_name()}, sd-scripts {source.commit[:12]}, {asked.size} at {resolution} px, "
                  f"{work.images} images × {work.epochs} epochs, {work.precision}", markup=False)  # fmt: skip
    variants = VARIANTS if "all" in asked.variants else asked.variants
    plan = [(name, batch, 1, False) for batch in asked.batch for name in variants]
    plan += [(name, batch, many, False) for batch in asked.batch for many in asked.styles for name in variants if name in asked.together]  # fmt: skip
    plan += [("tuned", batch, many, True) for batch in asked.batch for many in asked.styles if asked.mps]
    rows = [_stage(work, stage, asked.out) for stage in plan]
    show(rows)
    return 1 if any(row.error for row in rows) else 0


def _stage(work: Work, stage: tuple[str, int, int, bool], out: Path) -> Row:
    variant, batch, at_once, mps = stage
    with ExitStack() as stack:
        say = lambda _, **fields: console.print(str(fields["text"]))  # noqa: E731
        extra = stack.enter_context(mps_environment(say)) if mps else {}
        row = measure(work, variant, batch, at_once, {**os.environ, **extra})
    add_line({"time": time.time(), "mps": bool(extra), **asdict(row)}, out)
    console.print(f"{variant}, batch {batch}, {at_once} at once: {row.samples_per_s} samples/s", markup=False)
    return row


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
