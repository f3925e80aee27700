"""What the machine allows: a large matrix product, a copy, the VAE and CLIP in batches. It is the first bench of a GPU's day,
so it also makes the base of random numbers that the others find in the cache.

    python bench/ceilings.py --out lines.jsonl            # on a GPU SD 1.5's sizes; else a narrow model: seconds

The product is 8192³ in bf16 on a GPU, the copy 2 GB within the device, counted as bytes read plus bytes written. Weights
and pictures are random numbers.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from bench.lines import tell
from bench.timing import matrix_rate
from brushset.bases.load import load_components
from brushset.bases.resolve import resolve_base
from brushset.log import silent

Found = dict[str, Any]


def main(argv: list[str] | None = None) -> list[Found]:
    """Measures, and prints a line each."""
    asked = _parse(argv)
    found = []
    for row in _stages(asked):
        found.append(row)
        tell(row, asked.out)
    return found


def _stages(asked: argparse.Namespace) -> Iterator[Found]:
    device = asked.device
    yield {"stage": "matrix product", "tflop_per_s": matrix_rate(device) / 1e12}
    yield {"stage": "copy", "gb_per_s": _copy_rate(device) / 1e9}
    dtype, begun = torch.bfloat16 if device == "cuda" else torch.float32, time.perf_counter()
    base = resolve_base(asked.base, None, silent)
    yield {"stage": f"{asked.base}, made once", "seconds": round(time.perf_counter() - begun, 1)}
    models = load_components(base, device=device, dtype=dtype, parts=("vae", "text_encoder"))
    vae, encoder = models.vae, models.text_encoder
    for batch in asked.batches:
        pixels = torch.randn(batch, 3, asked.px, asked.px, device=device, dtype=dtype)
        latents = torch.randn(batch, 4, asked.px // 8, asked.px // 8, device=device, dtype=dtype)
        tokens = torch.randint(0, encoder.config.vocab_size, (batch, 77), device=device)
        works: dict[str, Callable[[], object]] = {
            "VAE, encoding": lambda pixels=pixels: vae.encode(pixels).latent_dist.mean,
            "VAE, decoding": lambda latents=latents: vae.decode(latents).sample,
            "CLIP's text encoder": lambda tokens=tokens: encoder(tokens).last_hidden_state,
            "CLIP ViT's image encoder": _vision(asked, batch, dtype),
        }
        for name, work in works.items():
            yield {"stage": name, "batch": batch, "images_per_s": batch / _seconds(work, device, asked.repeats)}


def _vision(asked: argparse.Namespace, batch: int, dtype: torch.dtype) -> Callable[[], object]:
    """ViT-L/14's tower, as CLIP and CSD have it and DINOv2 nearly, or a narrow one."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    large = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    narrow = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPVisionConfig(**(large if asked.vision == "large" else narrow), patch_size=14, image_size=224)
    tower = CLIPVisionModelWithProjection(config).to(asked.device, dtype).eval()
    pixels = torch.randn(batch, 3, 224, 224, device=asked.device, dtype=dtype)
    return lambda: tower(pixels).image_embeds


def _copy_rate(device: str) -> float:
    """Bytes a second."""
    size = (2 << 30) if device == "cuda" else (64 << 20)
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _seconds(lambda: target.copy_(source), device, 10)


@torch.no_grad()
def _seconds(work: Callable[[], object], device: str, repeats: int) -> float:
    """The median, after two to warm up."""
    times = []
    for done in range(repeats + 2):
        if device == "cuda":
            torch.cuda.synchronize()
        begun = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        if done >= 2:
            times.append(time.perf_counter() - begun)
    return statistics.median(times)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if gpu else "cpu")
    parser.add_argument("--base", default="random:sd15" if gpu else "random:tiny")
    parser.add_argument("--px", type=int, default=512 if gpu else 64)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 16, 64] if gpu else [2])
    parser.add_argument("--vision", choices=("large", "narrow"), default="large" if gpu else "narrow")
    parser.add_argument("--repeats", type=int, default=10 if gpu else 2)
    parser.add_argument("--out", type=Path, help="file that each line is added to")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
