"""Everything that only a GPU can tell, in one command: under eight minutes on an H200, one table at the end.

    SD_SCRIPTS_DIR=… python bench/gpu_day.py --out day        # SD 1.5's sizes, weights of random numbers
    python bench/gpu_day.py --tiny --out day                  # narrow models on any CPU: that it runs, no more

Every stage is a bench of this folder in a process of its own, with a time box of its own; its lines of JSON are in
`--out`/<stage>.jsonl as soon as they are measured and in `--out`/lines.jsonl once it has ended, its words in
`--out`/<stage>.log, and what fails or does not fit is told and ends no other. What the minutes did not reach is measured by
another call, with `--only` and its name. Weights are random, since speed does not depend on them. Versions, clocks and the
commands stand in the first line and in the logs. What to carry to a machine that fetches nothing: docs/gpu_day.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import psutil
from rich.console import Console
from rich.table import Table

from bench.lines import add_line
from brushset.trees import stop_processes

FOLDER = Path(__file__).resolve().parent
Found = dict[str, Any]
IN_ALL_S = 470.0
_STOP_S = 5.0


@dataclass(frozen=True)
class Stage:
    """One bench, how many seconds it may take, and its arguments on a GPU and where everything is tiny; None: not there."""

    name: str
    script: str
    box_s: float
    full: tuple[str, ...]
    tiny: tuple[str, ...] | None

    def command(self, out: Path, *, tiny: bool) -> list[str]:
        """The argv of the child."""
        arguments = (self.tiny or ()) if tiny else self.full
        return [sys.executable, str(FOLDER / self.script), *arguments, "--out", str(out)]


COMPILED = ("native, compiled", "native, 3 styles, compiled")
STAGES = (
    Stage("ceilings", "ceilings.py", 100, (), ("--device", "cpu")),
    Stage(
        "steps", "train.py", 170,
        ("--minutes", "2.5", "--repeats", "2", "--packed", "1", "2", "4", "8", "--native-text", "2", "4"),
        ("--device", "cpu", "--px", "64", "--batches", "1", "--rank", "2", "--repeats", "1"),
    ),
    Stage(
        "folders to files", "folder_to_files.py", 130, ("--most", "125"), ("--images", "2", "--epochs", "1", "--px", "64")
    ),
    Stage("equivalence", "equivalence.py", 40, (), ("--device", "cpu", "--batch", "1")),
    Stage(
        "generation", "generate.py", 60, ("--mixes", "4", "--box", "10", "--only", "switched (PEFT)", "mixed", "one adapter"),
        ("--device", "cpu", "--mixes", "3", "--prompts", "1", "--steps", "2", "--batch", "6", "--rank", "2"),
    ),
    Stage(
        "launches", "kohya.py", 140,
        ("--batch", "2", "--images", "16", "--epochs", "3", "--styles", "3", "--together", "tuned"),
        ("--size", "tiny", "--images", "2", "--batch", "1", "--epochs", "1", "--styles", "--variants", "tuned"),
    ),
    Stage("compiled", "train.py", 120, ("--minutes", "1.8", "--batches", "4", "--compile", "--only", *COMPILED), None),
)  # fmt: skip
"""The most telling first: what the minutes do not reach is left out from the end."""

TARGETS = (
    ("packed × 3, best batch", "images/s", 220.0), ("packed × 3 against sd-scripts, batch 2", "×", 8.0),
    ("packed × 3 against sd-scripts, batch 4", "×", 4.0), ("packed × 3, share of the limit", "", 0.5),
    ("three styles from folders to files", "s", 120.0), ("generation, one batch of mixes", "images/s", 9.0),
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> list[Found]:
    """Runs all stages; prints the table and what became of the targets."""
    asked = _parse(argv)
    asked.out.mkdir(parents=True, exist_ok=True)
    lines = asked.out / "lines.jsonl"
    before = len(lines.read_text(encoding="utf-8").splitlines()) if lines.is_file() else 0  # of another call
    add_line({"bench": "gpu_day", **describe_machine()}, lines)
    ends = time.monotonic() + asked.minutes * 60
    for stage in STAGES:
        if asked.only and stage.name not in asked.only:
            continue
        box = min(stage.box_s if not asked.tiny else 600.0, ends - time.monotonic())
        _run(stage, asked, lines, box)
    found = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()[before:]]
    show(found)
    return found


def describe_machine() -> Found:
    """Hardware, versions and clocks."""
    from importlib.metadata import version

    import torch

    packages = ("torch", "diffusers", "transformers", "accelerate", "peft")
    found: Found = {"date": time.strftime("%Y-%m-%d"), "python": sys.version.split()[0]}
    found |= {name: version(name) for name in packages} | {"cores": os.cpu_count()}
    if torch.cuda.is_available():
        said = ask_gpu("name,driver_version,clocks.sm,clocks.mem,power.limit")
        found["gpu"] = said or torch.cuda.get_device_name()
    return found


def ask_gpu(fields: str) -> str:
    """nvidia-smi's answer, empty where there is none."""
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    if shutil.which(query[0]) is None:
        return ""
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()


def _run(stage: Stage, asked: argparse.Namespace, lines: Path, box_s: float) -> None:
    """One stage; its own lines, then one of how it ended."""
    row: Found = {"bench": stage.name}
    on_gpu_alone = asked.tiny and stage.tiny is None
    if box_s < 5 or on_gpu_alone:
        why = "it takes minutes on a CPU" if on_gpu_alone else f"{asked.minutes:g} minutes were over"
        add_line(row | {"left_out": why}, lines)
        return
    own = asked.out / f"{stage.name.replace(' ', '_')}.jsonl"
    own.unlink(missing_ok=True)
    command = stage.command(own, tiny=asked.tiny)
    begun = time.monotonic()
    with (asked.out / f"{stage.name.replace(' ', '_')}.log").open("w", encoding="utf-8") as log:
        log.write(" ".join(command) + "\n")
        log.flush()
        with Popen(command, stdout=log, stderr=subprocess.STDOUT) as child:
            try:
                code = child.wait(box_s)
                row |= {"failed": f"exit {code}, see {log.name}"} if code else {}
            except subprocess.TimeoutExpired:  # its own children, too: they would slow down the stages that follow
                stop_processes([psutil.Process(child.pid)], _STOP_S)
                row["failed"] = f"stopped after {box_s:.0f} s, its time box"
    if own.is_file():
        for line in own.read_text(encoding="utf-8").splitlines():
            add_line({"bench": stage.name, **json.loads(line)}, lines)
    clocks = ask_gpu("clocks.sm,clocks.mem,temperature.gpu")
    row |= {"clocks": clocks} if clocks else {}
    add_line(row | {"took_s": round(time.monotonic() - begun, 1)}, lines)


def show(found: Sequence[Found]) -> None:
    """The table of steps, the other figures, the targets."""
    console = Console(width=180)
    console.print(f"{found[0]}", markup=False)
    steps = [row for row in found if row.get("bench") in {"steps", "compiled"} and "stage" in row]
    table = Table(
        "UNet", "batch a style", "way", "images/s", "× sd-scripts", "of the limit", "median ms", "operations", "kernels",
        "GPU busy", "waits", "peak MB",
    )  # fmt: skip
    for row in steps:
        if "images_per_s" not in row:
            table.add_row(
                "", str(row.get("batch", "")), row["stage"], str(row.get("left_out") or row.get("failed"))[:60]
            )
            continue
        table.add_row(
            "and text" if row["text"] else "alone", str(row["batch"]), row["stage"], f"{row['images_per_s']:.3g}",
            _ratio(row, _held(steps, "sd-scripts", row)), _ratio(row, _held(steps, "limit", row)),
            f"{1000 * row.get('median_s', row['step_s']):.1f}", _whole(row, "operations"), _whole(row, "kernels"),
            f"{row['gpu_busy_s'] / row['step_s']:.0%}" if "gpu_busy_s" in row else "", _whole(row, "synchronising"),
            _whole(row, "peak_mb"),
        )  # fmt: skip
    console.print(table)
    for row in found:
        if row.get("bench") not in {"steps", "compiled", "gpu_day"} or "stage" not in row:
            console.print(json.dumps({key: value for key, value in row.items() if key != "trace"}), markup=False)
    for (name, unit, aim), value in zip(TARGETS, reached(found), strict=True):
        said = "not measured" if value is None else f"{value:.3g} {unit}".strip()
        console.print(f"{name}: {said}; aim {aim:g} {unit}".rstrip(), markup=False)


def reached(found: Sequence[Found]) -> list[float | None]:
    """The figures of TARGETS, None where not measured. The ratio is of images/s at the same batch a style."""
    steps = [
        row for row in found if row.get("bench") in {"steps", "compiled"} and "images_per_s" in row and not row["text"]
    ]
    packed = [row for row in steps if row.get("styles", 1) > 1]
    best = max(packed, key=lambda row: row["images_per_s"], default=None)
    limit = _held(steps, "limit", best) if best else None

    def against_theirs(batch: int) -> float | None:
        rows = [row for row in packed if row["batch"] == batch]
        theirs = _held(steps, "sd-scripts", rows[0]) if rows else None
        return max(row["images_per_s"] for row in rows) / theirs["images_per_s"] if theirs else None

    whole = [row["wall_s"] for row in found if row.get("bench") == "folders to files" and "samples" in row]
    mixed = [row["images_per_s"] for row in found if str(row.get("way", "")).startswith("mixed")]
    return [
        best["images_per_s"] if best else None, against_theirs(2), against_theirs(4),
        best["images_per_s"] / limit["images_per_s"] if best and limit else None,
        whole[0] if whole else None, max(mixed, default=None),
    ]  # fmt: skip


def _held(rows: Sequence[Found], stage: str, beside: Found) -> Found | None:
    """The row of a stage at the same batch size, with the text encoder or without as the other."""
    same = [
        row
        for row in rows
        if (row["stage"], row.get("batch"), row.get("text")) == (stage, beside["batch"], beside["text"])
    ]
    return same[0] if same and "images_per_s" in same[0] else None


def _whole(row: Found, key: str) -> str:
    return f"{row[key]:.0f}" if key in row else ""


def _ratio(row: Found, other: Found | None) -> str:
    return f"{row['images_per_s'] / other['images_per_s']:.2f}" if other else ""


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="narrow models on the CPU")
    parser.add_argument("--minutes", type=float, default=IN_ALL_S / 60, help="of all stages together")
    parser.add_argument("--only", nargs="+", choices=[stage.name for stage in STAGES])
    parser.add_argument("--out", type=Path, required=True, help="folder for lines.jsonl and the logs")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
