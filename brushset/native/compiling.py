"""torch.compile of the blocks that repeat: residual blocks and transformer blocks. An option to be measured.

It fuses what is not a matrix product: norms with activations, GEGLU, residual sums. LoRA products stay as they are; their
gradients go to the flat buffer, which a compiled graph must not do, so a transformer block is several graphs with products
between them. Blocks of one kind and shape share them; each shape of a batch compiles anew (`dynamic=False` makes the
faster code), so how often is bounded by the buckets times the sizes of a batch. Compiled code is kept in the user's cache
from one run to the next.
It pays only where more is saved than the compilation takes: minutes for a first run. NVIDIA's NeMo saw 6 % of a ControlNet
step after channels_last; `python bench/train.py --compile` measures it here. Off unless asked for.
"""

from __future__ import annotations

import os
from typing import Any

from brushset.native.blocks import Residual, SelfAttention
from brushset.native.lora import LoraLayer
from brushset.paths import cache_dir

_MOST_GRAPHS = 4096
"""torch would leave a block uncompiled, with a warning, from the ninth shape on; ours are bounded as said above."""


def compile_blocks(unet: Any) -> int:
    """Has the blocks compiled when they first run; returns how many there are. `unet` has adapters and short blocks."""
    import torch
    from diffusers.models.attention import BasicTransformerBlock

    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir() / "inductor"))
    torch._dynamo.config.recompile_limit = _MOST_GRAPHS  # noqa: SLF001 - the documented place of these settings
    torch._dynamo.config.accumulated_recompile_limit = _MOST_GRAPHS  # noqa: SLF001
    blocks = [module for module in unet.modules() if isinstance(module, (Residual, BasicTransformerBlock))]
    for module in unet.modules():
        if isinstance(module, LoraLayer):
            module.forward = torch.compiler.disable(module.forward)  # type: ignore[method-assign]
        held = getattr(module, "processor", None)
        if isinstance(held, SelfAttention):
            held.product = torch.compiler.disable(held.product)
    for block in blocks:
        block.compile(dynamic=False)
    return len(blocks)


def compile_seconds() -> float:
    """Wall time that this process has spent on compilation so far."""
    from torch._dynamo.utils import calculate_time_spent

    return float(calculate_time_spent()["total_wall_time"])
