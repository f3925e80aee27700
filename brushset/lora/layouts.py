"""Where each module's weights stand in a file: all the ways in which SD 1.5 LoRAs are named, read from the header.

    kohya            lora_unet_down_blocks_0_…_to_q.lora_down.weight; lora_te_…, or lora_te1_… from diffusers' writer
    diffusers        unet.down_blocks.0.….to_q.lora_A.weight, text_encoder.text_model.….q_proj.lora_B.weight
    diffusers-old    unet.….to_q.lora.down.weight, text_encoder.….q_proj.lora_linear_layer.up.weight
    attn-processors  [unet.]down_blocks.0.….attn1.processor.to_q_lora.down.weight, ….self_attn.to_q_lora.up.weight
    peft             base_model.model.…, one component a file
    cloneofsimo      unet:0:up, text_encoder:3:down: counted, see cloneofsimo.py

One file may mix them. Two keys for one weight, half a module and keys that fit no layout are findings, all named.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from brushset.bases.header import Header
from brushset.errors import VerificationFailed
from brushset.lora.cloneofsimo import counted_paths
from brushset.lora.keys import Component, kohya_name
from brushset.lora.kinds import refuse_foreign, some

KOHYA, DIFFUSERS, OLD, PROCESSORS, PEFT, COUNTED = (
    "kohya", "diffusers", "diffusers-old", "attn-processors", "peft", "cloneofsimo",
)  # fmt: skip

_KOHYA_KEY = re.compile(r"(lora_unet|lora_te1?)_(\w+)\.(lora_down\.weight|lora_up\.weight|alpha)")
_DOTTED_KEY = re.compile(r"(?P<path>.+?)(?P<part>\.alpha|[._]lora.*)")
_COUNTED_KEY = re.compile(r"(unet|text_encoder):(\d{1,4}):(up|down)")
_PARTS = (  # how a dotted key ends → which weight, and the layout that it is a sign of
    (re.compile(r"\.lora_A(\.[^.]+)?\.weight"), "down", DIFFUSERS),
    (re.compile(r"\.lora_B(\.[^.]+)?\.weight"), "up", DIFFUSERS),
    (re.compile(r"\.(lora|lora_linear_layer)\.down\.weight|\.lora_down\.weight"), "down", OLD),
    (re.compile(r"\.(lora|lora_linear_layer)\.up\.weight|\.lora_up\.weight"), "up", OLD),
    (re.compile(r"_lora\.down\.weight"), "down", PROCESSORS),
    (re.compile(r"_lora\.up\.weight"), "up", PROCESSORS),
    (re.compile(r"\.alpha"), "alpha", OLD),
)
_WRAPPER = "base_model.model."
_OLD_TEXT_NAMES = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


@dataclass(frozen=True)
class ModuleKeys:
    """The names of one module's tensors in a file, and its path in the model where the file says that."""

    component: Component
    path: str
    parts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """Kohya name → keys, and the layouts that were met, most keys first."""

    modules: Mapping[str, ModuleKeys]
    kinds: tuple[str, ...]
    old_text_prefix: bool


def read_layout(header: Header, source: str) -> Layout:
    """Finds every module of a file.

    Raises:
        UsageError: another method's or family's file; see `refuse_foreign`.
        VerificationFailed: keys that name nothing, twice the same or half a module; all of them.
    """
    refuse_foreign(header, source)
    found, left, twice, kinds = _sort_keys(header)
    half = [name for name, keys in found.items() if not {"up", "down"} <= keys.parts.keys()]
    findings = []
    if left:
        findings.append(f"{len(left)} keys name no module of SD 1.5: {some(left)}")
    if twice:
        findings.append(f"{len(twice)} weights stand there twice: {some(twice)}")
    if half:
        findings.append(f"{len(half)} modules are incomplete, without down or up: {some(half)}")
    if findings:
        raise VerificationFailed.of_many([f"{source}: {finding}" for finding in findings])
    order = sorted(kinds, key=lambda kind: -kinds[kind])
    te1 = any(name.startswith("lora_te1_") for name in header.tensors)
    return Layout(dict(sorted(found.items())), tuple(order), te1)


@dataclass(frozen=True)
class _Place:
    """Which weight a key is. `path` is empty where names are Kohya's, which cannot be read back without a table."""

    component: Component
    name: str
    part: str
    kind: str
    path: str = ""


def _sort_keys(header: Header) -> tuple[dict[str, ModuleKeys], list[str], list[str], dict[str, int]]:
    found: dict[str, ModuleKeys] = {}
    left, twice = [], []
    kinds: dict[str, int] = {}
    counted = counted_paths(header)
    for key in sorted(header.tensors):
        place = _place(key, counted)
        if place is None:
            left.append(key)
            continue
        module = found.setdefault(place.name, ModuleKeys(place.component, place.path))
        if place.part in module.parts:
            twice.append(f"{module.parts[place.part]} and {key}")
        module.parts[place.part] = key
        kinds[place.kind] = kinds.get(place.kind, 0) + 1
    return found, left, twice, kinds


def _place(key: str, counted: Mapping[str, str]) -> _Place | None:
    """Where a key belongs; None where it fits no layout."""
    if match := _KOHYA_KEY.fullmatch(key):
        prefix, inner, suffix = match.groups()
        component: Component = "unet" if prefix == "lora_unet" else "text_encoder"
        part = suffix.removeprefix("lora_").removesuffix(".weight")
        return _Place(component, kohya_name(component, inner), part, KOHYA)
    if match := _COUNTED_KEY.fullmatch(key):
        component = "unet" if match[1] == "unet" else "text_encoder"
        path = counted.get(f"{match[1]}:{int(match[2])}")
        return _Place(component, kohya_name(component, path), match[3], COUNTED, path) if path else None
    return _place_dotted(key)


def _place_dotted(key: str) -> _Place | None:
    match = _DOTTED_KEY.fullmatch(key)
    if match is None:
        return None
    path, suffix = match["path"], match["part"]
    sign = next(((part, kind) for expression, part, kind in _PARTS if expression.fullmatch(suffix)), None)
    if sign is None:
        return None
    part, kind = sign
    if path.startswith(_WRAPPER):
        path, kind = path.removeprefix(_WRAPPER), PEFT
    component = _component(path)
    if component is None:
        return None
    inner = path.removeprefix(f"{component}.").replace(".processor.", ".")
    inner = _present_name(inner, component, kind)
    return _Place(component, kohya_name(component, inner), part, kind, inner)


def _component(path: str) -> Component | None:
    """Which model a dotted path is in: by its prefix, or by its first block where old files have none."""
    if path.startswith(("unet.", "down_blocks.", "mid_block.", "up_blocks.", "conv_", "time_embedding.")):
        return "unet"
    return "text_encoder" if path.startswith(("text_encoder.", "text_model.")) else None


def _present_name(path: str, component: Component, kind: str) -> str:
    """Today's path of an attention layer that the processors' layout names by its role: to_out → to_out.0."""
    stem, _, last = path.rpartition(".")
    if kind != PROCESSORS or last not in _OLD_TEXT_NAMES:
        return path
    if component == "text_encoder":
        return f"{stem}.{_OLD_TEXT_NAMES[last]}"
    return f"{path}.0" if last == "to_out" else path
