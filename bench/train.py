"""One training step, side by side: sd-scripts' own, the native engine's, the native engine's for three styles at once, and
what the machine's matrix products would allow.

    SD_SCRIPTS_DIR=… python bench/train.py                 # narrow model, any CPU: about a minute
    python bench/train.py --base random:sd15 --px 256      # full width
    python bench/train.py --device cuda                    # SD 1.5 at 512 px, batches 1 to 8: under eight minutes

Models, latents and LoRA weights are of random numbers. Operations are what a step starts from the host, views left out:
without a graph each is a kernel launch on a GPU, which is what bounds training at batch 2 to 4; a captured step starts a
few. Waits are places where the host stops until the device has answered. A row's figures are per style; images/s are of all
its styles. On a CPU seconds are one thread's CPU time, the smallest of `--repeats`, and images/s follow from them: ratios,
not claims about a GPU. MFU is the step's matrix products, convolutions and attention (counted by torch, forward and
backward, of the native step) over what a large product reaches in the same run; the limit is a step of nothing else.
Every stage has its own time box, and its result is written to `--out` as a line of JSON as soon as it is there.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from rich.console import Console
from rich.table import Table

from bench.native_step import Work, make_step
from brushset.bases.resolve import resolve_base
from brushset.errors import EnvironmentProblem
from brushset.kohya.source import Source, find_source
from brushset.log import silent

STYLES = 3
STAGE_S = {"cpu": 600.0, "cuda": 45.0}
"""Time box of a stage; one that is not begun when `--minutes` are over is left out, and said to be."""

Found = dict[str, Any]


def main(argv: list[str] | None = None) -> list[Found]:
    """Measures, prints the tables, and returns what was found."""
    asked = _parse(argv)
    ends, found = time.monotonic() + 60 * asked.minutes, []
    with tempfile.TemporaryDirectory() as scratch, _opened(asked.out, scratch) as out:
        theirs = SdScripts(asked)
        for name, work in stages(asked):
            if asked.only and name not in asked.only:
                continue
            begun = time.monotonic()
            row: Found = {"stage": name, "batch": work.batch, "styles": work.styles, "text": work.trains_text}
            if begun > ends:
                row["left_out"] = f"{asked.minutes:g} minutes were over"
            else:
                row |= run_stage(name, work, asked, theirs)
            found.append(row | {"stage_s": round(time.monotonic() - begun, 1)})
            print(json.dumps(found[-1]), file=out, flush=True)
    for trains_text in sorted({row["text"] for row in found}):
        for batch in asked.batches:
            print_table(asked, [row for row in found if (row["text"], row["batch"]) == (trains_text, batch)])
    return found


def _parse(argv: list[str] | None) -> argparse.Namespace:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--base", help="default: random:tiny on a CPU, random:sd15 on a GPU")
    parser.add_argument("--px", type=int, help="default: 128 on a CPU, 512 on a GPU")
    parser.add_argument(
        "--batches", type=int, nargs="+", help="samples a style and step; default: 2, on a GPU 2 4 1 8 16"
    )
    parser.add_argument(
        "--native-text", type=int, nargs="+", metavar="BATCH", help="with the text encoder at these alone"
    )
    parser.add_argument("--packed", type=int, nargs="+", metavar="BATCH", help="three styles at these alone")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="compiled blocks, too: minutes the first time")
    parser.add_argument("--only", nargs="+", metavar="STAGE", help="these stages alone, by the names in the table")
    parser.add_argument("--minutes", type=float, default=7.0, help="no stage is begun after that")
    parser.add_argument("--out", type=Path, help="a file for the lines of JSON")
    asked = parser.parse_args(argv)
    on_gpu = asked.device == "cuda"
    asked.base = resolve_base(asked.base or ("random:sd15" if on_gpu else "random:tiny"), None, silent)
    asked.px = asked.px or (512 if on_gpu else 128)
    asked.batches = asked.batches or ([2, 4, 1, 8, 16] if on_gpu else [2])
    torch.set_num_threads(1)
    return asked


def _opened(out: Path | None, scratch: str) -> Any:
    return (out or Path(scratch) / "lines.jsonl").open("a", encoding="utf-8")


def stages(asked: argparse.Namespace) -> Iterator[tuple[str, Work]]:
    """What is measured, the most telling first."""
    for batch in asked.batches:
        for trains_text in (False, True):
            work = Work(asked.base, asked.px, batch, asked.rank, asked.device, trains_text=trains_text)
            yield "limit", work
            yield "sd-scripts", work
            if not trains_text or batch in (asked.native_text or asked.batches):
                yield from _ways(asked, work)


def _ways(asked: argparse.Namespace, work: Work) -> Iterator[tuple[str, Work]]:
    """The native engine's: one style and several, eager, and on a GPU captured; compiled where that is asked for."""
    on_gpu = asked.device == "cuda"
    packs = {"native": 1, f"native, {STYLES} styles": STYLES}
    if work.batch not in (asked.packed or asked.batches):
        packs = {"native": 1}
    for name, styles in packs.items():
        yield name, work.of(styles=styles)
        if on_gpu:
            yield f"{name}, graph", work.of(styles=styles, cuda_graphs=True)
        if asked.compile:
            yield f"{name}, compiled", work.of(styles=styles, compiled=True, cuda_graphs=on_gpu)


def run_stage(name: str, work: Work, asked: argparse.Namespace, theirs: SdScripts) -> Found:
    """One stage's figures; what went wrong is a figure, too, and ends no other stage."""
    try:
        if name == "limit":
            return measure_limit(work)
        if name == "sd-scripts":
            return theirs.measure(work)
        return measure_native(work, asked.repeats, STAGE_S[asked.device])
    except Exception as error:  # noqa: BLE001 - the other stages are worth having
        return {"failed": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()[-2000:]}


def measure_limit(work: Work) -> Found:
    """What a step would take if it were one large matrix product."""
    flops, rate = work.samples * _flops_a_sample(work.of(batch=1)), _matrix_rate(work.device)
    return {"flops": flops, "flop_per_s": rate, "step_s": flops / rate, "images_per_s": work.samples * rate / flops}


@functools.cache
def _flops_a_sample(work: Work) -> int:
    """Of a step of one sample: what is counted is as many times that as there are samples."""
    from bench.timing import count_flops

    step = make_step(work)
    step()
    return count_flops(step)


@functools.cache
def _matrix_rate(device: str) -> float:
    from bench.timing import matrix_rate

    return matrix_rate(device)


def measure_native(work: Work, repeats: int, most_s: float) -> Found:
    """The native step, in this process."""
    from bench.timing import measure
    from brushset.native.compiling import compile_seconds

    before = compile_seconds()
    found: Found = dict(measure(make_step(work), repeats, device=work.device, most_s=most_s))
    compiled = {"compile_s": round(compile_seconds() - before, 1)} if work.compiled else {}
    return found | compiled | {"images_per_s": work.samples / found["step_s"]}


class SdScripts:
    """sd-scripts' step, in a child that is asked once for all batch sizes, with the text encoder and without: its imports take
    longer than they do.
    """

    def __init__(self, asked: argparse.Namespace) -> None:
        self._asked = asked
        self._found: dict[tuple[bool, int], Found] = {}

    def measure(self, work: Work) -> Found:
        """The figures of one batch size."""
        try:
            source = find_source(fetch=False)
        except EnvironmentProblem as error:
            return {"left_out": str(error)}
        if not self._found:
            self._found = self._ask(work, source)
        found = self._found[work.trains_text, work.batch]
        return found if "step_s" not in found else found | {"images_per_s": work.samples / found["step_s"]}

    def _ask(self, work: Work, source: Source) -> dict[tuple[bool, int], Found]:
        most_s = STAGE_S[work.device] / (3 if work.device == "cuda" else 1)
        wanted = [(text, batch) for text in (False, True) for batch in self._asked.batches]
        unet = json.loads((Path(work.base.path) / "unet" / "config.json").read_text(encoding="utf-8"))
        job = {
            "base": work.base.path, "widths": unet["block_out_channels"], "cross": unet["cross_attention_dim"],
            "rank": work.rank, "batches": self._asked.batches, "latent": work.px // 8, "repeats": self._asked.repeats,
            "device": work.device, "most_s": most_s,
        }  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "job.json"
            path.write_text(json.dumps(job), encoding="utf-8")
            child = [sys.executable, str(Path(__file__).with_name("sd_scripts_step.py")), str(path)]
            environment = {**os.environ, "SD_SCRIPTS_DIR": str(source.folder), "OMP_NUM_THREADS": "1"}
            most = 4 * most_s * len(wanted) + 60
            done = subprocess.run(child, env=environment, capture_output=True, text=True, check=False, timeout=most)
        rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        why = {"failed": f"sd-scripts' step ended with {done.returncode}", "trace": done.stderr[-2000:]}
        return dict.fromkeys(wanted, why) | {(row.pop("text"), row.pop("batch")): row for row in rows}


def print_table(asked: argparse.Namespace, rows: list[Found]) -> None:
    """One batch size's table: with the text encoder's LoRA, or without."""
    first = rows[0]
    title = f"{asked.base.name}, {asked.px} px, batch {first['batch']} a style, rank {asked.rank}, {asked.device}, " + (
        "UNet and text encoder" if first["text"] else "UNet alone"
    )
    table = Table(
        "a step", "images/s", "× sd-scripts", "of the limit", "operations a style", "×", "waits", "host s a style",
        "peak MB", title=title,
    )  # fmt: skip
    held = {row["stage"]: row for row in rows}
    limit, theirs = held.get("limit", {}), held.get("sd-scripts", {})
    for row in rows:
        if why := row.get("left_out") or row.get("failed"):
            table.add_row(row["stage"], str(why).splitlines()[0][:60], *[""] * 7)
        else:
            table.add_row(row["stage"], *_cells(row, limit, theirs))
    Console(width=160).print(table)


def _cells(row: Found, limit: Found, theirs: Found) -> list[str]:
    def ratio(key: str, *, more_is_better: bool) -> str:
        if key not in theirs or key not in row:
            return ""
        one = (row[key], theirs[key]) if more_is_better else (theirs[key] * row["styles"], row[key])
        return f"{one[0] / one[1]:.2f}"

    share = f"{row['images_per_s'] / limit['images_per_s']:.1%}" if "images_per_s" in limit else ""
    speed = [f"{row['images_per_s']:.3g}", ratio("images_per_s", more_is_better=True), share]
    if "operations" not in row:
        return [*speed, *[""] * 5]
    return [
        *speed, f"{row['operations'] / row['styles']:.0f}", ratio("operations", more_is_better=False),
        f"{row['synchronising']:.0f}", f"{row['host_s'] / row['styles']:.3f}", f"{row['peak_mb']:.0f}",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
