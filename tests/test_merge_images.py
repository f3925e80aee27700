"""A merged file draws what the mix of its sources draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_files import write_lora

from brushset.generator import MultiLoRAGenerator
from brushset.lora.adapter import read_adapter
from brushset.lora.merge.method import Wanted
from brushset.lora.merge.mix import Part, Recipe
from brushset.lora.merge.weights import Weight
from brushset.lora.merge.write import merge_adapters
from brushset.records import BaseFile


def test_a_concatenated_file_draws_the_mix(tiny_base: BaseFile, tmp_path: Path) -> None:
    import torch

    generator = MultiLoRAGenerator(tiny_base, device="cpu")
    mix = [("anime", 0.6), ("watercolor", 0.4)]
    parts = []
    for seed, (name, weight) in enumerate(mix, 1):
        path = write_lora(tmp_path / f"{name}.safetensors", dim=2 + seed, seed=seed)
        parts.append(Part(name, read_adapter(path), Weight(weight)))
        generator.load_lora(path, name)
    merged = merge_adapters(parts, Recipe("concat", Wanted()), tmp_path / "mix.safetensors")
    generator.load_lora(merged.path, "mix")

    def draw(configs: list[tuple[str, float]]) -> Any:
        generator._activate(configs)
        seeded = torch.Generator("cpu").manual_seed(1)
        return generator.pipeline(
            "a cat", num_inference_steps=3, height=64, width=64, generator=seeded, output_type="latent"
        ).images

    one, other, base = draw(mix), draw([("mix", 1.0)]), draw([])
    assert (one - other).norm() <= 1e-5 * one.norm()
    assert (one - base).norm() >= 1e-2 * base.norm()
    assert (draw([("anime", 0.6)]) - one).norm() >= 1e-3 * one.norm()
