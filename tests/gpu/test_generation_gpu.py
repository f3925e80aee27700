"""Batches of many mixes on a GPU, in half precision: against the CPU, against one another, and compiled."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))  # lora_files stands there

from lora_files import write_lora

from brushset.generator import ImageJob, Mix, MultiLoRAGenerator, Sampling
from brushset.records import BaseFile

pytestmark = pytest.mark.gpu

MIXES: tuple[Mix, ...] = ((), [("anime", 1.0)], [("anime", 0.6), ("watercolor", 0.4)], [("watercolor", "0.8,up=0.2")])
JOBS = [ImageJob("a cat", seed, mix) for mix in MIXES for seed in (1, 2)]
SIZE = {"steps": 6, "width": 128, "height": 128}


@pytest.fixture(scope="module", autouse=True)
def _gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")


def made(base: BaseFile, folder: Path, **options: object) -> MultiLoRAGenerator:
    generator = MultiLoRAGenerator(base, **options)  # type: ignore[arg-type]
    for seed, name in enumerate(("anime", "watercolor"), 1):
        generator.load_lora(write_lora(folder / f"{name}.safetensors", seed=seed, dim=2 + seed), name)
    return generator


def draw(generator: MultiLoRAGenerator, batch_size: int) -> np.ndarray:
    found = dict(generator.generate_jobs(JOBS, Sampling(batch_size=batch_size, **SIZE)))
    return np.stack([np.asarray(found[index]).astype(int) for index in range(len(JOBS))])


def test_float32_on_the_gpu_is_the_cpus_and_half_is_near(tiny_base: BaseFile, tmp_path: Path) -> None:
    import torch

    on_cpu = draw(made(tiny_base, tmp_path, device="cpu"), 1)
    exact = draw(made(tiny_base, tmp_path, device="cuda", dtype=torch.float32), 8)
    assert np.abs(exact - on_cpu).max() <= 4  # TF32 is off unless somebody turned it on
    half = draw(made(tiny_base, tmp_path, device="cuda"), 8)
    assert np.abs(half - on_cpu).mean() < 2


def test_a_seed_gives_the_same_image_in_any_batch(tiny_base: BaseFile, tmp_path: Path) -> None:
    generator = made(tiny_base, tmp_path, device="cuda")
    alone = draw(generator, 1)
    for size in (2, 5, 8):
        assert np.abs(draw(generator, size) - alone).mean() < 1


def test_compiled_images_are_the_same(tiny_base: BaseFile, tmp_path: Path) -> None:
    plain = draw(made(tiny_base, tmp_path, device="cuda"), 4)
    compiled = draw(made(tiny_base, tmp_path, device="cuda", compile=True), 4)
    assert np.abs(compiled - plain).mean() < 1
