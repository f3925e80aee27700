"""What a file that is no SD 1.5 LoRA is instead, by its header alone: refused in one line, before a tensor is read.

Other methods (LoHa, LoKr, DoRA …) add something else than alpha/rank · up · down; other models have other layers, or
layers of the same name and another width: the width of what cross-attention reads is 768 in SD 1.x, 1024 in SD 2,
2048 in SDXL. Key names: LyCORIS lycoris/modules, PEFT tuners, sd-scripts networks, diffusers loaders.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from brushset.bases.header import Header
from brushset.errors import UsageError

_METHODS = (  # what a key holds → what the file is; the first that matches wins
    (r"\.hada_(w|t)\d", "a LoHa (Hadamard products, LyCORIS)"),
    (r"\.lokr_(w|t)\d", "a LoKr (Kronecker products, LyCORIS)"),
    (r"\.dora_scale$|lora_magnitude_vector", "a DoRA (weights decomposed into magnitude and direction)"),
    (r"\.oft_|\.boft_", "an OFT (orthogonal fine-tuning)"),
    (r"\.lora_mid\.", "a LoCon in Tucker form (lora_mid)"),
    (r"\.on_input$|\.ia3_l", "an IA3"),
    (r"\.[ab][12]\.weight$", "a GLoRA (LyCORIS)"),
    (r"vera_lambda", "a VeRA"),
    (r"\.lora_E\b|\.ranknum\b", "an AdaLoRA"),
    (r"\.diff(_b)?$|\.[wb]_norm$", "full differences (LyCORIS), not low-rank"),
    (r"^lora_controlnet$", "a Control-LoRA"),
    (r"motion_modules", "a motion LoRA (AnimateDiff)"),
    (r"_custom_diffusion\.", "a Custom Diffusion file"),
    (r"^emb_params$|^string_to_param", "a textual-inversion embedding"),
    (r"\.lora_B\.bias$|\.lora_up\.bias$|\.lora\.up\.bias$", "a LoRA with biases"),
    (r"^model\.diffusion_model\.|^first_stage_model\.", "a checkpoint, not a LoRA"),
)
_FAMILIES = (
    (r"double_blocks|single_blocks|single_transformer_blocks", "Flux"),
    (r"joint_blocks|^transformer\.transformer_blocks\.\d+\.attn\.add_", "SD 3"),
    (r"^lora_te2_|^text_encoder_2\.", "SDXL"),
    (r"^lora_unet_(input|output|middle)_block", "SDXL"),
    (r"(attentions|blocks)[._]\d+[._]transformer_blocks[._][1-9]", "SDXL"),  # SD 1.5's have one, SDXL's two or ten
    (r"add_embedding", "SDXL"),
    (r"^transformer\.|^lora_transformer_|^diffusion_model\.|^lora_unet_(blocks|layers)_", "a diffusion transformer"),
)
_WIDTHS = {1024: "SD 2", 1280: "the SDXL refiner", 2048: "SDXL"}
_CONTEXT_DOWN = re.compile(r"attn2[._](processor\.)?to_[kv](_lora)?\.(lora_down|lora_A|lora\.down|down)\b.*weight$")
_SHOWN = 3


def refuse_foreign(header: Header, source: str) -> None:
    """Raises UsageError where a file is a LoRA of another method or family, or no LoRA, saying which."""
    if what := foreign_kind(header):
        raise UsageError(f"{source}: {what}; what is taken here is a plain LoRA or LoCon of SD 1.5")
    if not any(re.search(r"lora|:up$|:down$", name) for name in header.tensors):
        raise UsageError(f"{source}: no LoRA: its keys are like {some(sorted(header.tensors)) or 'none'}")


def foreign_kind(header: Header) -> str | None:
    """What a file is that is no plain LoRA of SD 1.x; None where nothing speaks against that."""
    method, model = _first(header.tensors, _METHODS), foreign_family(header)
    if method is None:
        return f"a LoRA of {model}" if model else None
    return f"{method} of {model}" if model else method


def foreign_family(header: Header) -> str | None:
    """Which other model a LoRA is for; None where nothing speaks against SD 1.x."""
    return _first(header.tensors, _FAMILIES) or _WIDTHS.get(_context_width(header))


def family(header: Header) -> str:
    """The model that a LoRA is for, as far as names and widths tell."""
    width = _context_width(header)
    if known := foreign_family(header):
        return known
    return "SD 1.x" if width == 768 else f"SD 1.x by its names, of width {width}" if width else "SD 1.x by its names"


def _context_width(header: Header) -> int:
    """How wide what it reads from the text encoder is; 0 where no such layer is there."""
    for name, entry in header.tensors.items():
        if _CONTEXT_DOWN.search(name) and len(entry.shape) > 1:
            return entry.shape[1]
    return 0


def some(names: list[str]) -> str:
    """The first few of many names, for one line."""
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest


def _first(names: Iterable[str], table: Iterable[tuple[str, str]]) -> str | None:
    for pattern, what in table:
        expression = re.compile(pattern)
        if any(expression.search(name) for name in names):
            return what
    return None
