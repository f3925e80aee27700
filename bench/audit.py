"""How fast is the audit's measuring, against Pillow's plain decode with SHA-256 and pHash? And what does it hold?

python bench/audit.py DIR…               images/s at 1 and 2 processes, both ways in turn, best of three
python bench/audit.py --start DIR        seconds by number of images, in this process and in two: where a pool pays
python bench/audit.py --memory N DIR     peak memory of an audit of N small images, made in a folder that is removed
    python bench/audit.py --hashes N         seconds and memory of the search for near-duplicates among N
"""

from __future__ import annotations

import argparse
import hashlib
import io
import math
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from brushset.audit.duplicates import group_near
from brushset.audit.folder import audit_folder
from brushset.audit.measure import MeasureLimits
from brushset.audit.pool import _context, measure_all
from brushset.audit.settings import AuditSettings
from brushset.listing import list_source_images
from brushset.log import silent
from brushset.spec import StyleSpec

LIMITS = MeasureLimits("#ffffff", 64.0, thumbnail=True)
SETTINGS = AuditSettings.of(StyleSpec(name="bench", trigger="bench"))


def measure_plainly(path: Path) -> str:
    """The least that an audit could do: read, hash, decode, perceptual hash."""
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    with Image.open(io.BytesIO(content)) as image:
        return digest + str(imagehash.phash(image.convert("RGB")))


def run_plainly(paths: Sequence[Path], workers: int) -> None:
    """All of `paths`, in this process or in several."""
    if workers == 1:
        for path in paths:
            measure_plainly(path)
        return
    with ProcessPoolExecutor(workers, _context()) as pool:
        list(pool.map(measure_plainly, paths, chunksize=8))


def run_ours(paths: Sequence[Path], workers: int | None) -> None:
    """All of `paths`, with everything that the audit measures and a thumbnail each."""
    for _ in measure_all(paths, LIMITS, silent, workers):
        pass


def seconds(work: Callable[[], None]) -> float:
    """Of the wall."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def compare(folders: Sequence[Path]) -> None:
    """The table: CPU milliseconds an image in one process, which other work on the machine hardly changes, and images/s."""
    heads = ("plain ms", "audit ms", "plain 1/s", "audit 1/s", "plain 2/s", "audit 2/s")
    print(f"{'set':28}{'images':>7}" + "".join(f"{head:>11}" for head in heads))
    for folder in folders:
        paths = [path for path in list_source_images(folder) if _opens(path)]
        cpu = dict.fromkeys((run_plainly, run_ours), math.inf)
        wall = dict.fromkeys(((run, workers) for workers in (1, 2) for run in cpu), math.inf)
        for _ in range(3):
            for run, workers in wall:
                before = time.process_time()
                wall[run, workers] = min(wall[run, workers], seconds(partial(run, paths, workers)))
                if workers == 1:
                    cpu[run] = min(cpu[run], time.process_time() - before)
        numbers = [1000 * value / len(paths) for value in cpu.values()] + [
            len(paths) / value for value in wall.values()
        ]
        print(f"{folder.name:28}{len(paths):7}" + "".join(f"{number:11.1f}" for number in numbers), flush=True)


def find_start(folder: Path) -> None:
    """Where two processes overtake this one with its threads."""
    paths = list_source_images(folder)
    print(f"{'images':>7}{'one process':>14}{'threads':>10}{'two processes':>16}   seconds")
    for count in (8, 16, 32, 64, 128, 256):
        some = [paths[index % len(paths)] for index in range(count)]
        one, two = seconds(lambda: run_ours(some, 1)), seconds(lambda: run_ours(some, 2))  # noqa: B023
        threads = seconds(lambda: run_ours(some, None)) if count < 100 else float("nan")  # noqa: B023
        print(f"{count:7}{one:14.2f}{threads:10.2f}{two:16.2f}")


def weigh(count: int) -> None:
    """Peak memory of this process over an audit of `count` images of 32×32 that differ."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rng = np.random.default_rng(0)
        for index in range(count):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            (folder / f"{index // 1000:03}").mkdir(exist_ok=True)
            Image.fromarray(pixels).resize((32, 32)).save(folder / f"{index // 1000:03}" / f"{index}.png")
        before = _peak_mib()
        started = time.perf_counter()
        result = audit_folder(folder, SETTINGS, silent)
        print(
            f"{count} images: {time.perf_counter() - started:.0f} s; peak {_peak_mib():.0f} MiB, {before:.0f} before; "
            f"{len(result.groups)} groups, {len(result.thumbnails)} thumbnails"
        )


def search(count: int) -> None:
    """Hashes that all differ, that all lie within six bits of one, and that are one of four."""
    rng = np.random.default_rng(0)
    ball = np.zeros(count, np.uint64)
    for _ in range(6):
        ball ^= np.uint64(1) << rng.integers(0, 64, count).astype(np.uint64)
    kinds = {
        "all different": rng.integers(0, 2**64, count, dtype=np.uint64),
        "one ball": ball,
        "four values": rng.integers(0, 4, count).astype(np.uint64) * np.uint64(0x1111111111111111),
    }
    for name, hashes in kinds.items():
        values, before = hashes.tolist(), _peak_mib()
        started = time.process_time()
        group_near(values, 6)
        took = time.process_time() - started
        print(f"{count} hashes, {name}: {took:.1f} s of one core, {_peak_mib() - before:.0f} MiB more")


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _opens(path: Path) -> bool:
    try:
        measure_plainly(path)
    except Exception:  # noqa: BLE001 - what plain Pillow cannot decode cannot be compared
        return False
    return True


def main() -> None:
    """Says what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--start", action="store_true")
    parser.add_argument("--memory", type=int)
    parser.add_argument("--hashes", type=int)
    asked = parser.parse_args()
    print(f"{os.cpu_count()} cores, processes by {_context().get_start_method()}, load {os.getloadavg()[0]:.1f}")
    if asked.hashes:
        search(asked.hashes)
    elif asked.memory:
        weigh(asked.memory)
    elif asked.start:
        find_start(asked.folders[0])
    else:
        compare(asked.folders)


if __name__ == "__main__":
    main()
