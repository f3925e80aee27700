"""How much memory does a style take on the device, beside the models that all share?

Known beforehand are its row of the flat buffers, its optimizer's moments, and its cached latents: a line says them before
training, and on a GPU how many more such styles the free memory would hold at most. What the activations of a batch take is
not known before one has run, and is not guessed; where all styles at once do not fit, they are halved (brushset.engines.native).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from brushset.native.session import Session

_MOMENTS = {"AdamW": 2, "Lion": 1, "Prodigy": 4}
"""Numbers that an optimizer keeps for each that it trains, as precise as those are. Prodigy keeps where each began, too."""

_BYTES_OF_8_BIT_MOMENTS = 2
"""AdamW8bit has a byte for each of two; matrices below 4096 numbers, which it keeps in full, are few."""


def style_bytes(session: Session) -> int:
    """Bytes that the style takes: its row of the buffers, its moments once they are there, its latents."""
    flat, optimizer = session.pack.flat, session.settings.training.optimizer_type
    buffers = {each.data_ptr(): each for each in (flat.master, flat.working, flat.gradients, flat.summed)}
    trained = [weights for group in session.optimizer.param_groups for weights in group["params"]]
    moments = [_BYTES_OF_8_BIT_MOMENTS if optimizer == "AdamW8bit" else _MOMENTS[optimizer] * each.element_size()
               for each in trained]  # fmt: skip
    latents = [*session.latents.mean.values(), *(session.latents.deviation or {}).values()]
    return (
        sum(each[0].nbytes for each in buffers.values())
        + sum(bytes_ * each.numel() for bytes_, each in zip(moments, trained, strict=True))
        + sum(each.nbytes for each in latents)
    )


def describe_memory(sessions: Sequence[Session]) -> str:
    """One line: what each takes, and on a GPU how many more there would be room for."""
    needed = [style_bytes(session) for session in sessions]
    each = (
        f"{min(needed) / 1e6:.0f}"
        if max(needed) - min(needed) < 5e5
        else f"{min(needed) / 1e6:.0f} to {max(needed) / 1e6:.0f}"
    )
    text = f"a style takes {each} MB beside the models, and what its batches take"
    device = sessions[0].pack.device
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        text += f"; {free / 1e9:.1f} of {total / 1e9:.1f} GB are free, enough for {free // max(needed)} more without batches"
    return text
