"""Grids of made-up vectors with known geometry, for tests of what metrics compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from eval.layout import Layout
from eval.seen import Seen

PROMPTS, SEEDS = 5, 2
PLACES = np.repeat(np.arange(PROMPTS), SEEDS)


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def scatter(count: int, seed: int, *, toward: Sequence[float] = (), spread: float = 1.0, dim: int = 12) -> np.ndarray:
    """Unit vectors around a direction."""
    centre = np.zeros(dim)
    centre[: len(toward)] = toward
    return unit(centre + spread * np.random.default_rng(seed).normal(size=(count, dim)))


def noise_images(count: int, seed: int, size: tuple[int, int] = (48, 40)) -> list[Image.Image]:
    random = np.random.default_rng(seed)
    return [Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)) for _ in range(count)]


def layout(**changes: object) -> Layout:
    parts: dict[str, object] = {
        "style": "ink", "main": "ink 0.8", "words": "base + style words", "no_trigger": "ink 0.8, no trigger",
        "wrong_trigger": "ink 0.8, trigger of wash",
        "alone": {"ink": {0.5: "ink 0.5", 0.8: "ink 0.8", 1.0: "ink 1"}, "wash": {0.5: "wash 0.5", 1.0: "wash 1"}},
        "mixes": {"ink 0.5 + wash 0.5": {"ink": 0.5, "wash": 0.5}},
    }  # fmt: skip
    return Layout(**(parts | changes))  # type: ignore[arg-type]


def seen(cells: Mapping[str, np.ndarray] | None = None, **changes: object) -> Seen:
    """A style along the first axis, another along the second, the base along the third; more weight, more style."""
    toward = {
        "base": (0, 0, 2), "base + style words": (0.6, 0, 1.6), "ink 0.5": (0.9, 0, 1.2), "ink 0.8": (1.6, 0, 0.8),
        "ink 1": (2, 0, 0.6), "ink 0.8, no trigger": (1, 0, 1.2), "ink 0.8, trigger of wash": (1.2, 0, 1),
        "wash 0.5": (0, 1, 1.2), "wash 1": (0, 2, 0.6), "ink 0.5 + wash 0.5": (0.7, 0.5, 1),
    }  # fmt: skip
    made = {name: scatter(len(PLACES), 10 + i, toward=to, spread=0.3) for i, (name, to) in enumerate(toward.items())}
    parts: dict[str, object] = {
        "layout": layout(), "prompts": PLACES, "cells": made | dict(cells or {}),
        "trained": scatter(30, 1, toward=(2,), spread=0.3), "held_out": scatter(12, 2, toward=(2,), spread=0.3),
        "others": {"wash": scatter(20, 3, toward=(0, 2), spread=0.3)}, "texts": scatter(len(PLACES), 4),
    }  # fmt: skip
    return Seen(**(parts | changes))  # type: ignore[arg-type]
