"""What a LoRA may be called: its file's stem, its `ss_output_name` and the NAME of `<lora:NAME:0.8>` are one word.

A1111 strips `,` and `:` from the hashes that it writes into images, cuts prompts at `:`, and keeps two names for itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from brushset.errors import UsageError
from brushset.protocols import MixPart

STEM = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_RESERVED = {"none", "addams"}


def is_reserved(stem: str) -> bool:
    """Whether A1111 gives this name a meaning of its own."""
    return stem.lower() in _RESERVED


def require_stem(style: str) -> str:
    """The style's name, as the stem of its file.

    Raises:
        UsageError: a name that prompts cannot hold, or that A1111 keeps for itself.
    """
    if not STEM.fullmatch(style) or is_reserved(style):
        raise UsageError(f'style "{style}": A1111 cannot call a LoRA by this name; fix: rename the style')
    return style


def mix_calls(parts: Sequence[MixPart]) -> str:
    """What calls a mix in a prompt of A1111 or Forge: `<lora:anime:0.5> <lora:cartoon:0.5>`."""
    return " ".join(f"<lora:{part.style}:{part.weight:g}>" for part in parts)


def mix_stem(styles: Sequence[str]) -> str:
    """What a mix is called: a name that no single style's file has, and that prompts can hold."""
    return "_with_".join(styles)
