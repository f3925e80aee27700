"""A merged file draws what the mix of its sources draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_files import write_lora
from unrounded import draw_unrounded

from brushset.bases.load import load_components
from brushset.generation.engine import Engine
from brushset.generation.settings import Picture, Sampling
from brushset.log import silent
from brushset.lora.adapter import read_adapter
from brushset.lora.compose import Mix, compose
from brushset.lora.merge.method import Wanted
from brushset.lora.merge.mix import Part, Recipe
from brushset.lora.merge.weights import Weight
from brushset.lora.merge.write import merge_adapters
from brushset.records import BaseFile


def test_a_concatenated_file_draws_the_mix(tiny_base: BaseFile, tmp_path: Path) -> None:
    engine = Engine(load_components(tiny_base), one_by_one=True, compiled=False, emit=silent)
    mix = [("anime", Weight(0.6)), ("watercolor", Weight(0.4))]
    parts = []
    for seed, (name, weight) in enumerate(mix, 1):
        path = write_lora(tmp_path / f"{name}.safetensors", dim=2 + seed, seed=seed)
        parts.append(Part(name, read_adapter(path), weight))
        engine.load(name, parts[-1].adapter, "tiny")
    merged = merge_adapters(parts, Recipe("concat", Wanted()), tmp_path / "mix.safetensors")
    engine.load("mix", read_adapter(merged.path), "tiny")

    def draw(configs: Mix) -> Any:
        picture = Picture("a cat", "", 1, compose("weighted", configs))
        return draw_unrounded(engine, picture, Sampling(steps=3, width=64, height=64))

    one, other, base = draw(mix), draw([("mix", Weight(1.0))]), draw([])
    assert (one - other).abs().max() <= 1e-4
    assert (one - base).abs().max() >= 1e-2
    assert (draw(mix[:1]) - one).abs().max() >= 1e-3
