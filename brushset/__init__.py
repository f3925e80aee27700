"""brushset: style LoRAs for Stable Diffusion 1.5, from a folder of images to adapters that are proven to work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from brushset.generator import MultiLoRAGenerator, create_comparison_grid

__version__ = "0.1.0"
__all__ = ["MultiLoRAGenerator", "create_comparison_grid"]


def __getattr__(name: str) -> Any:
    """Loads the generator on first use: importing brushset itself stays cheap."""
    if name in __all__:
        from brushset import generator

        return getattr(generator, name)
    raise AttributeError(f"module 'brushset' has no attribute {name!r}")
