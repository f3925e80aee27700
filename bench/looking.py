"""CPU seconds to hand 100 generated pictures of 512 × 512 to five extractors: from their files, from memory, and looked at again.

    OMP_NUM_THREADS=1 python bench/looking.py [--images 40] [--folder of/pictures]

The networks do nothing here, so that what is left is ours: decoding, hashing, PIL's resize. The smallest of three.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from PIL import Image

from brushset.listing import list_source_images
from brushset.log import silent
from eval.embedder import Embedder, Identity, Towers
from eval.frames import Frames
from eval.layout import Layout
from eval.look import Pictures, look_at
from eval.metric import ExtractorName
from eval.preprocess import Preprocess

_SIDE_PX = 512
_REPEATS = 3


def main() -> None:
    """Prints a line of JSON a way."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--folder", type=Path, help="pictures to take; noise where none is given")
    options = parser.parse_args()
    images = _pictures(options.folder, options.images)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.png" for number in range(len(images))]
        wrote = _seconds(lambda: [image.save(file) for image, file in zip(images, files, strict=True)])
        _tell("writing the PNGs, on other threads", wrote, len(images))
        for name, seconds in _ways(images, files).items():
            _tell(name, seconds, len(images))


def _ways(images: Sequence[Image.Image], files: Sequence[Path]) -> dict[str, float]:
    """The smallest CPU seconds of each way to look at all of them."""
    found: dict[str, list[float]] = {}
    for _ in range(_REPEATS):
        from_memory, extractors = Frames(), _extractors()
        for image, file in zip(images, files, strict=True):
            from_memory.put(file, image)
        for name, frames, eyes in (
            ("from files", Frames(), _extractors()),
            ("from memory", from_memory, extractors),
            ("looked at again", from_memory, extractors),
        ):
            pictures = Pictures(
                Layout("ink", ""), (_SIDE_PX, _SIDE_PX), {"base": files}, [], [], {}, [0] * len(files), [], frames
            )
            seconds = _seconds(lambda pictures=pictures, eyes=eyes: look_at(pictures, eyes, silent))  # type: ignore[misc]
            found.setdefault(name, []).append(seconds)
    return {name: min(each) for name, each in found.items()}


def _extractors() -> dict[ExtractorName, Any]:
    """Five, three of which resize as CLIP, CSD and DINOv2 do, with networks that give zeros and a one."""

    def look(resize: Preprocess | None) -> Callable[[Sequence[Image.Image]], np.ndarray]:
        def rows(images: Sequence[Image.Image]) -> np.ndarray:
            if resize is not None:
                resize(images)
            return np.tile(np.float32([0, 1]), (len(images), 1))

        return rows

    sizes = {
        "clip": (224, 224),
        "csd": (224, 224),
        "dinov2": (256, 224),
        "inception": None,
        "lpips": None,
    }
    return {
        name: Embedder(
            Identity(name, "", meaningful=True), lambda size=size: Towers(look(Preprocess(*size) if size else None))
        )
        for name, size in sizes.items()
    }  # type: ignore[return-value]


def _pictures(folder: Path | None, count: int) -> list[Image.Image]:
    if folder is None:
        random = np.random.default_rng(0)
        shape = (_SIDE_PX, _SIDE_PX, 3)
        return [Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)) for _ in range(count)]
    found = list_source_images(folder)[:count]
    return [Image.open(file).convert("RGB").resize((_SIDE_PX, _SIDE_PX)) for file in found]


def _seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def _tell(way: str, seconds: float, images: int) -> None:
    print(json.dumps({"way": way, "cpu_s_per_100": round(100 * seconds / images, 2)}), flush=True)


if __name__ == "__main__":
    main()
