"""A mix as one Kohya file that loads everywhere, with where it comes from in its metadata.

Written beside its place, read back and compared: every factor bit by bit, and for the exact methods ΔW with Σ wᵢΔWᵢ.
Captions and folder names of the sources stay out; of what they say of their base only what all of them say is kept.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from brushset.errors import VerificationFailed
from brushset.log import silent
from brushset.lora.adapter import AdapterFile, Factors, read_adapter
from brushset.lora.forms import to_kohya
from brushset.lora.inspection import trigger_of
from brushset.lora.kinds import some
from brushset.lora.merge.measure import MixReport, measure
from brushset.lora.merge.mix import METHODS, Mixed, Part, Recipe, adapter_hash, mix
from brushset.lora.save import save_adapter
from brushset.protocols import Emit

MAX_ERROR = {"float": 1e-6, "fp16": 5e-4, "bf16": 4e-3}  # of ΔW, by rounding alone; see deltas.py
PROVENANCE_KEY = "brushset.merge"
_IF_ALL_AGREE = (
    "ss_sd_model_name", "ss_sd_model_hash", "ss_new_sd_model_hash", "ss_vae_name", "ss_clip_skip",
    "modelspec.resolution", "modelspec.prediction_type", "modelspec.license", "modelspec.author",
)  # fmt: skip
_BASE_HASHES = ("ss_new_sd_model_hash", "ss_sd_model_hash", "ss_sd_model_name")


@dataclasses.dataclass(frozen=True)
class Merge:
    """What was written: `energy` is the share of the method's full result that the rank holds; `notes` are lines on what
    the sources do not have in common.
    """

    path: Path
    sha256: str
    energy: float
    report: MixReport
    trigger: str
    notes: tuple[str, ...]


def merge_adapters(parts: Sequence[Part], recipe: Recipe, target: Path, emit: Emit = silent) -> Merge:
    """Merges, writes, reads back and measures.

    Raises:
        UsageError: a recipe or adapters that do not go together.
        VerificationFailed: what was written is not what was meant; nothing is left under `target`.
    """
    mixed = mix(parts, recipe, emit)
    _require_finite(mixed.factors, recipe.dtype)
    draft = target.with_name(f".tmp-{os.getpid()}-{target.name}")
    try:
        sha256 = save_adapter(draft, to_kohya(mixed.factors), _metadata(parts, recipe, mixed))
        written = read_adapter(draft).factors
        _require_same(mixed.factors, written, target)
        report = measure(parts, written)
        if METHODS[recipe.method].exact and not report.error <= MAX_ERROR[recipe.dtype]:
            raise VerificationFailed(
                f"{target}: ΔW differs from the weighted sum by {report.error:.2g} where {MAX_ERROR[recipe.dtype]:g} is "
                f"allowed in {recipe.dtype}; nothing was kept; fix: --dtype float"
            )
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    return Merge(target, sha256, mixed.energy, report, _trigger(parts), tuple(_notes(parts)))


def _require_finite(factors: Mapping[str, Factors], dtype: str) -> None:
    broken = [
        name for name, factor in factors.items() if not (factor.up.isfinite().all() and factor.down.isfinite().all())
    ]
    if broken:
        raise VerificationFailed(
            f"merge: {len(broken)} modules do not fit into {dtype}: {some(broken)}; fix: --dtype float"
        )


def _require_same(meant: Mapping[str, Factors], written: Mapping[str, Factors], target: Path) -> None:
    import torch

    wrong = sorted(meant.keys() ^ written.keys())
    wrong += [
        name
        for name, factor in meant.items()
        if name in written
        and not (
            torch.equal(factor.up, written[name].up)
            and torch.equal(factor.down, written[name].down)
            and factor.alpha == written[name].alpha
        )
    ]
    if wrong:
        raise VerificationFailed(f"{target}: {len(wrong)} modules read back otherwise: {some(wrong)}; nothing was kept")


def _metadata(parts: Sequence[Part], recipe: Recipe, mixed: Mixed) -> dict[str, str]:
    """What the file says of itself. No clock: the same mix gives the same bytes."""
    ranks = {factor.rank for factor in mixed.factors.values()}
    rank = str(ranks.pop()) if len(ranks) == 1 else "Dynamic"  # sd-scripts' own word (networks/resize_lora.py)
    title = " + ".join(f"{part.name} {part.weight.told()}" for part in parts)
    told = {
        "ss_network_module": "networks.lora",
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "ss_network_dim": rank,
        "ss_network_alpha": rank,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.title": title,
        "modelspec.merged_from": ", ".join(part.name for part in parts),
        PROVENANCE_KEY: json.dumps(_provenance(parts, recipe, mixed), ensure_ascii=False),
    }
    if trigger := _trigger(parts):
        told["modelspec.trigger_phrase"] = trigger
    return {**told, **_agreed(parts)}


def _provenance(parts: Sequence[Part], recipe: Recipe, mixed: Mixed) -> dict[str, object]:
    method = METHODS[recipe.method]
    settings: dict[str, object] = {"rank": recipe.wanted.rank}
    if method.density is not None:
        settings["density"] = method.density if recipe.wanted.density is None else recipe.wanted.density
    if recipe.method == "dare":
        settings["seed"] = recipe.wanted.seed
    return {
        "method": recipe.method,
        **{key: value for key, value in settings.items() if value is not None},
        "energy": round(mixed.energy, 6),
        "sources": [
            {
                "name": part.name,
                "weight": part.weight.told(),
                "file": part.adapter.files[0].name,
                "model_hash": adapter_hash(part.adapter),
                "trigger": trigger_of(part.adapter.metadata)[0],
            }
            for part in parts
        ],
    }


def _agreed(parts: Sequence[Part]) -> dict[str, str]:
    """What all sources say alike of the base they were trained on."""
    first, *others = [part.adapter.metadata for part in parts]
    return {
        key: first[key]
        for key in _IF_ALL_AGREE
        if first.get(key) and all(other.get(key) == first[key] for other in others)
    }


def _trigger(parts: Sequence[Part]) -> str:
    """All triggers, as a prompt would begin."""
    words = [trigger_of(part.adapter.metadata)[0] for part in parts]
    return ", ".join(dict.fromkeys(word for word in words if word))


def _notes(parts: Sequence[Part]) -> list[str]:
    notes = []
    for key in _BASE_HASHES:
        bases = {part.name: part.adapter.metadata.get(key, "") for part in parts}
        if len(set(filter(None, bases.values()))) > 1:
            listed = ", ".join(f"{name} {value[:12] if 'hash' in key else value}" for name, value in bases.items())
            notes.append(
                f"they say that they were trained on different base models ({listed}): styles may not carry over"
            )
            break
    with_text = {part.name: _has_text(part.adapter) for part in parts}
    if len(set(with_text.values())) > 1:
        without = [name for name, there in with_text.items() if not there]
        notes.append(f"{', '.join(without)}: no text encoder; those modules come from the others alone")
    notes += [f"{part.name}: states no alpha; taken as the rank" for part in parts if not part.adapter.alpha_stated]
    return notes


def _has_text(adapter: AdapterFile) -> bool:
    return any(name.startswith("lora_te") for name in adapter.factors)
