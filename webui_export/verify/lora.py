"""One LoRA file, as the UIs will read it: its header, its keys through each UI's table, its values.

All findings are collected. Values are looked at only where the keys are plain Kohya ones; of another method or model it
is said what the file is instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from brushset.bases.header import Header, read_header
from brushset.errors import BrushsetError, UsageError
from brushset.lora.inspection import ModuleFacts, inspect_file
from brushset.lora.kinds import foreign_kind, some
from webui_export.verify import a1111, comfyui, invokeai
from webui_export.verify.blocks import NARROW, SD15, TEXT_LAYERS, Shape, Widths, split_keys
from webui_export.verify.header import header_faults
from webui_export.verify.invokeai import unet_layers

NARROW_KEY = "brushset.widths"  # in the header of what was trained on the narrow random model
BASE_KEY = "brushset.base"  # in the header of what was trained on random numbers, of whatever widths
RANDOM = "random"
_UIS = (a1111.apply, comfyui.apply, invokeai.apply)
_ALPHA_TOLERANCE = 2**-8  # alpha is stored in the file's dtype: bf16 keeps 8 bits


@dataclass(frozen=True)
class LoraCheck:
    """What was found of one file. `applied`: UI → modules that it applies."""

    metadata: Mapping[str, str]
    modules: int
    applied: Mapping[str, int]
    faults: Sequence[str]
    notes: Sequence[str]


def check_lora(file: Path) -> LoraCheck:
    """Reads a file as each UI does."""
    try:
        header = read_header(file)
    except UsageError as error:
        return LoraCheck({}, 0, {}, [str(error).removeprefix(f"{file}: ")], [])
    shapes = {name: entry.shape for name, entry in header.tensors.items()}
    narrow = header.metadata.get(NARROW_KEY) == "narrow"
    widths = NARROW if narrow else SD15
    applied = [apply(shapes, widths) for apply in _UIS]
    faults = list(header_faults(file, header))
    if foreign := foreign_kind(header):
        faults.append(f"it is {foreign}, where an SD 1.5 LoRA belongs")
    else:
        faults += [fault for ui in applied for fault in ui.faults]
        faults += _sets(shapes, widths)
        faults += _values(file, header)
    modules = {ui.ui: ui.modules for ui in applied}
    return LoraCheck(header.metadata, len(split_keys(shapes)), modules, faults, _notes(header.metadata, narrow=narrow))


def made_on_random(metadata: Mapping[str, str]) -> bool:
    """Whether a header says that the base model was made of random numbers: ours, or the embedded trainer's."""
    return metadata.get(BASE_KEY) == RANDOM or metadata.get("ss_sd_model_name", "").startswith(f"{RANDOM}:")


def _notes(metadata: Mapping[str, str], *, narrow: bool) -> list[str]:
    if narrow:
        return ["trained on brushset's narrow random model: no UI has a model that it fits"]
    if made_on_random(metadata):
        return ["trained on a base model of random numbers: UIs apply it, and it shows no style"]
    return []


def _sets(shapes: Mapping[str, Shape], widths: Widths) -> Iterator[str]:
    """Whether all of a part is there: the UNet's 192 attention modules, and all or none of the text encoder's 72."""
    there = set(split_keys(shapes))
    unet = [f"lora_unet_{path.replace('.', '_')}" for path in unet_layers(widths) if ".attentions." in path]
    if missing := sorted(name for name in unet if name not in there):
        yield f"{len(missing)} of the UNet's {len(unet)} modules are missing: {some(missing)}"
    text = {name for name in there if name.startswith("lora_te")}
    if text and len(text) != 72:
        yield f"{len(text)} of the text encoder's 72 modules are there: {some(sorted(text))}"
    if bare := sorted(name for name in there if f"{name}.alpha" not in shapes):
        yield f"{len(bare)} modules have no alpha: UIs take the rank for it, which is another strength: {some(bare)}"


def _values(file: Path, header: Header) -> Iterator[str]:
    try:
        modules = inspect_file(file).modules
    except BrushsetError as error:
        yield str(error).replace(f"{file}: ", "").replace("\n", "; ")
        return
    if broken := sorted(name for name, facts in modules.items() if not facts.finite):
        yield f"{len(broken)} modules hold NaN or infinity: {some(broken)}"
    untrained = _skipped(header.metadata)
    dead = [name for name, facts in modules.items() if facts.finite and facts.norm == 0]
    if dead := sorted(name for name in dead if not name.startswith(untrained)):
        yield f"{len(dead)} of {len(modules)} modules add nothing, all of them zero: {some(dead)}"
    yield from _numbers(modules, header.metadata)


def _skipped(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Prefixes of the text layers that clip skip leaves out of the model, so that no step reaches them. Of a merged file
    each part may have its own, so all but the first layer may be untouched.
    """
    skip = TEXT_LAYERS if "modelspec.merged_from" in metadata else int(_number(metadata.get("ss_clip_skip")) or 1)
    return tuple(
        f"lora_te_text_model_encoder_layers_{TEXT_LAYERS - left}_" for left in range(1, min(skip, TEXT_LAYERS))
    )


def _numbers(modules: Mapping[str, ModuleFacts], metadata: Mapping[str, str]) -> Iterator[str]:
    """Rank and alpha, as the header states them; convolutions may have their own (`conv_dim` in ss_network_args)."""
    plain = {name: facts for name, facts in modules.items() if not re.search("resnets|samplers|conv_|time_emb", name)}
    dim, alpha = metadata.get("ss_network_dim", ""), _number(metadata.get("ss_network_alpha"))
    ranks = {str(facts.rank) for facts in plain.values()}
    if dim not in ("", "Dynamic") and ranks and ranks != {dim}:
        yield f"ss_network_dim is {dim}, the tensors' rank {', '.join(sorted(ranks))}"
    if alpha is not None:
        other = sorted(name for name, facts in plain.items() if abs(facts.alpha - alpha) > alpha * _ALPHA_TOLERANCE)
        if other:
            found = modules[other[0]].alpha
            yield f"ss_network_alpha is {alpha:g}, alpha in {len(other)} modules another, such as {found:g}: {some(other)}"


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None
