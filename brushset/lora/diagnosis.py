"""Why a LoRA does nothing, or too much: every reason that its file can give, each with what to do.

Seen in bug reports: `up` all zero (nothing was trained), NaN, the text encoder missing, names that a UI does not know
(A1111 loads none of a diffusers file's keys and says nothing), alpha lost on the way, another base model.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from brushset.bases.header import read_header
from brushset.errors import BrushsetError
from brushset.lora.inspection import Inspection, inspect_file
from brushset.lora.keys import PREFIXES, expected_shapes
from brushset.lora.kinds import some
from brushset.lora.layouts import COUNTED, DIFFUSERS, KOHYA, OLD, PEFT, PROCESSORS

Level = Literal["ok", "note", "broken"]
DEAD_RMS, WEAK_RMS, STRONG_RMS = 1e-5, 1e-4, 3e-2
"""How large the numbers of ΔW are, root mean square of the largest module. The model's own are 0.02 to 0.05; two real
style LoRAs have 3e-4 to 5e-4; two steps of training leave 1e-5 to 4e-5. The bounds are ours."""
_MOST_LOST = 0.1  # of a part; where more is missing, it was not trained
_UI_FIX = "orchestrate.py convert FILE --to kohya"

_OTHER_LAYOUTS: Mapping[str, tuple[Level, str]] = {  # measured in the UIs' own loaders, where a number stands
    DIFFUSERS: ("note", "for Python; A1111 loads 0 of 264 modules and says nothing, ComfyUI loses the attention"),
    OLD: ("note", "for Python; A1111 does not know these names"),
    PROCESSORS: ("broken", "of diffusers before 0.17: its load_lora_weights may take nothing of it, A1111 neither"),
    PEFT: ("broken", "PEFT's own names: A1111 and ComfyUI load 0 of 264 modules"),
    COUNTED: ("broken", "layers counted, not named: no UI of today reads it, nor does diffusers"),
}


@dataclass(frozen=True)
class Symptom:
    """One thing that was found. `broken`: it keeps the LoRA from working; `note`: it may be meant."""

    level: Level
    what: str
    found: str
    fix: str = ""


def diagnose(file: Path, *, text_encoder: bool = True) -> list[Symptom]:
    """All that can be said of a file. `text_encoder` false says that the UNet alone was asked for."""
    try:
        read_header(file)
        facts = inspect_file(file)
    except BrushsetError as error:
        return [
            Symptom("broken", "file", line, "get the file anew, as .safetensors") for line in str(error).splitlines()
        ]
    if facts.foreign:
        fix = "use it with the model it was made for; brushset makes and mixes LoRAs of SD 1.5"
        return [Symptom("broken", "kind", facts.foreign, fix)]
    found = [
        _family(facts),
        *_layout(facts),
        *_values(facts),
        *_alphas(facts),
        *_parts(facts, text_encoder=text_encoder),
    ]
    return [*found, *_hash(facts), *_model(file, found)]


def _family(facts: Inspection) -> Symptom:
    said = facts.metadata.get("ss_base_model_version", "") or facts.metadata.get("modelspec.architecture", "")
    wrong = said and not any(known in said for known in ("sd_v1", "sd_1.5", "sd1", "stable-diffusion-v1"))
    if wrong or facts.metadata.get("ss_v2") == "True":
        fix = "orchestrate.py metadata FILE --set ss_base_model_version=sd_v1 --set ss_v2=False"
        return Symptom("broken", "family", f"{facts.family}, but its metadata says {said or 'SD 2'}: UIs hide it", fix)
    if not said:
        fix = "orchestrate.py metadata FILE --set ss_base_model_version=sd_v1"
        return Symptom(
            "note", "family", f"{facts.family}; its metadata does not say so: A1111 shows it as Unknown", fix
        )
    return Symptom("ok", "family", facts.family)


def _layout(facts: Inspection) -> list[Symptom]:
    names = " + ".join(facts.layouts)
    if facts.layouts == (KOHYA,):
        if facts.old_text_prefix:
            found = "text encoder named lora_te1_ (diffusers' writer): InvokeAI and SwarmUI do not know it"
            found += "; that writer also sets alpha to the rank, which doubles a LoRA trained at half of it"
            return [Symptom("note", "layout", found, _UI_FIX)]
        return [Symptom("ok", "layout", "kohya: A1111, Forge, ComfyUI, InvokeAI and SwarmUI load it")]
    level, found = _OTHER_LAYOUTS[facts.layouts[0]]
    return [Symptom(level, "layout", f"{names}: {found}", _UI_FIX)]


def _values(facts: Inspection) -> list[Symptom]:
    modules = facts.modules
    if odd := sorted(name for name, module in modules.items() if module.finite and not math.isfinite(module.rms)):
        found = f"up and down do not multiply in {len(odd)} of {len(modules)} modules: {some(odd)}"
        return [
            Symptom("broken", "shapes", found, "get the file anew; whatever wrote it may have exchanged up and down")
        ]
    if broken := sorted(name for name, module in modules.items() if not module.finite):
        found = f"NaN or infinity in {len(broken)} of {len(modules)} modules: {some(broken)}"
        fix = "train again with a lower rate or mixed_precision bf16; take an earlier epoch's file"
        return [Symptom("broken", "values", found, fix)]
    dead = sorted(name for name, module in modules.items() if module.dead)
    if len(dead) == len(modules):
        fix = "train again: every up matrix is zero, so no step reached this file"
        return [Symptom("broken", "dead", f"all {len(modules)} modules add nothing", fix)]
    symptoms = []
    if dead:
        fix = "train again if they were meant to be trained"
        symptoms.append(
            Symptom("note", "dead", f"{len(dead)} of {len(modules)} modules add nothing: {some(dead)}", fix)
        )
    return [*symptoms, _strength({name: module.rms for name, module in modules.items() if not module.dead})]


def _strength(sizes: Mapping[str, float]) -> Symptom:
    middle, largest = statistics.median(sizes.values()), max(sizes.values())
    told = f"ΔW is {middle:.2g} (median; largest {largest:.2g}) where the model's weights are about 0.03"
    if strong := sorted(name for name, size in sizes.items() if size > STRONG_RMS):
        found = f"{told}: {len(strong)} modules outweigh the model: {some(strong)}"
        return Symptom("broken", "strength", found, "train again at a lower rate; try it at weight 0.1 meanwhile")
    if largest < DEAD_RMS:
        return Symptom("broken", "strength", f"{told}: too weak to see", "train longer, or at a higher rate")
    if largest < WEAK_RMS:
        fix = "train longer, or at a higher rate; after a smoke run this is as it should be"
        return Symptom("note", "strength", f"{told}: hardly visible", fix)
    return Symptom("ok", "strength", told)


def _alphas(facts: Inspection) -> list[Symptom]:
    modules = facts.modules
    symptoms = []
    if zero := sorted(name for name, module in modules.items() if module.alpha == 0):
        found = f"0 in {len(zero)} modules: ComfyUI applies nothing of them, sd-scripts takes it as the rank"
        symptoms.append(Symptom("broken", "alpha", found, "save it again with alpha set"))
    if not facts.alpha_stated and facts.layouts == (DIFFUSERS,):
        found = "the file states none, the rank is taken; diffusers' own saver loses alpha, so it may be too strong"
        symptoms.append(Symptom("note", "alpha", found, "convert the file that the trainer wrote"))
    elif not facts.alpha_stated:
        symptoms.append(
            Symptom("ok", "alpha", "none in the tensors: the rank, so that up · down is the whole strength")
        )
    said = _number(facts.metadata.get("ss_network_alpha"))
    other = sorted(name for name, module in modules.items() if said and abs(module.alpha - said) > 0.01 * said)
    if facts.layouts == (KOHYA,) and len(other) == len(modules) and said:
        found = f"{modules[other[0]].alpha:g} in the tensors, {said:g} in the metadata: a conversion lost it"
        symptoms.append(Symptom("broken", "alpha", found, "use the file that the trainer wrote"))
    return symptoms or [Symptom("ok", "alpha", _common({f"{module.alpha:g}" for module in modules.values()}))]


def _parts(facts: Inspection, *, text_encoder: bool) -> list[Symptom]:
    counts = facts.counts()
    told = ", ".join(f"{part} {count}" for part, count in counts.items())
    rate = _number(facts.metadata.get("ss_text_encoder_lr"))
    if lost := _lost(facts.modules.keys()):
        fix = "use the file that the trainer wrote, unless it was told to leave these out"
        return [
            Symptom(
                "note", "modules", f"{told}: {len(lost)} of those that trainers write are missing: {some(lost)}", fix
            )
        ]
    if "text encoder" in counts or not text_encoder:
        return [Symptom("ok", "modules", told)]
    if rate:
        found = f"{told}: no text encoder, though it was trained at {rate:g}: it was lost on the way"
        return [Symptom("broken", "modules", found, "use the file that the trainer wrote")]
    fix = "train with [train] train_text_encoder = true if the trigger does nothing; --unet-only if this is meant"
    return [Symptom("note", "modules", f"{told}: UNet alone, so the trigger's meaning is as it was", fix)]


def _lost(modules: Collection[str]) -> list[str]:
    """Modules that are missing from a part of the model of which nearly all are there."""
    names = sorted({key.partition(".")[0] for key in expected_shapes(1, text_encoder=True)})
    parts = [[name for name in names if name.startswith(prefix)] for prefix in PREFIXES.values()]
    missing = [[name for name in part if name not in modules] for part in parts]
    return [
        name for part, lost in zip(parts, missing, strict=True) for name in lost if len(lost) <= _MOST_LOST * len(part)
    ]


def _hash(facts: Inspection) -> list[Symptom]:
    if facts.hash_right is False:
        found = "sshs_model_hash is not that of the tensors: the file was changed after training"
        return [Symptom("note", "hash", found, "orchestrate.py metadata FILE --keep full writes it anew")]
    return []


def _model(file: Path, found: list[Symptom]) -> list[Symptom]:
    """Whether names and shapes are SD 1.5's: the model's tree tells, where nothing is broken before it."""
    if any(symptom.level == "broken" and symptom.what in ("values", "shapes", "alpha") for symptom in found):
        return []
    from brushset.lora.adapter import read_adapter

    try:
        adapter = read_adapter(file)
    except BrushsetError as error:
        return [
            Symptom("broken", "model", line, "use it with the model it was made for")
            for line in str(error).splitlines()
        ]
    if adapter.architecture.narrow:
        fix = "train on a real base model"
        return [Symptom("note", "model", "made on brushset's narrow random model: it shows that things run", fix)]
    return [Symptom("ok", "model", f"all {len(adapter.factors)} modules fit SD 1.5")]


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _common(values: set[str]) -> str:
    return ", ".join(sorted(values, key=float))
