"""The mixes that packages hold: those that evaluation advises with this style, each also as one merged file.

A package's mix is a weighted sum, as all UIs do it: where another method is advised, the best sum stands in, and says so.

The other adapters are the newest of their styles on the same base, as evaluation takes them. Their headers are completed
from their own runs, without a picture: what another style's evaluation has drawn by now must not change these bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from brushset.errors import VerificationFailed
from brushset.files import write_json
from brushset.load import load_style
from brushset.log import silent
from brushset.lora.metadata import model_hash, read_metadata
from brushset.partners import Partner, find_partners
from brushset.protocols import Emit, ExportJob, MixPart, RecommendedMix
from brushset.records import EvalReport, MixCandidate, MixChoice, Package, Trained
from brushset.stage_records import load_result
from webui_export.a1111 import package_of
from webui_export.advice import find_advice
from webui_export.header import reservation, title
from webui_export.lora_file import write_lora, write_with_header
from webui_export.names import mix_calls, mix_stem
from webui_export.pictures import thumbnail, write_preview
from webui_export.verify.header import NO_VALUES
from webui_export.verify.lora import BASE_KEY, NARROW_KEY, RANDOM

if TYPE_CHECKING:
    from brushset.lora.adapter import Factors
    from brushset.lora.merge.mix import Part


def find_mixes(job: ExportJob, report: EvalReport, folder: Path) -> tuple[RecommendedMix, ...]:
    """What evaluation advises of every pair and triple with this style, the others' files written into `folder`."""
    partners = {partner.style: partner for partner in find_partners(job.spec, job.run).chosen}
    images = {cell.name: cell.images for cell in (*report.cells, *report.more_cells)}
    mixes = []
    for choice in report.mix_choices:
        own, *others = choice.styles
        if own != job.spec.name or not set(others) <= partners.keys():
            continue
        packed = choice.as_sum or choice.chosen
        parts = [_own_part(job, packed), *(_part(job, partners[style], packed, folder) for style in others)]
        shown = images.get(packed.cell, ())
        preview = job.run.root / shown[0] if shown else None
        mixes.append(RecommendedMix(tuple(parts), preview, choice.reason, _missing_method(choice)))
    return tuple(mixes)


def _missing_method(choice: MixChoice) -> str:
    """What a UI cannot do of what is advised."""
    chosen, packed = choice.chosen, choice.as_sum or choice.chosen
    if chosen.method == packed.method:
        return ""
    loras = " ".join(f"{style}:{weight:g}" for style, weight in chosen.mix.items())
    told = f"--loras {loras} --method {chosen.method}" + (" --shares weights" if chosen.method == "composite" else "")
    return (
        f"Advised is {chosen.cell}, which no UI does; this is the best weighted sum. "
        f"`orchestrate.py inference {told}` does what is advised."
    )


def export_mixes(job: ExportJob, emit: Emit = silent) -> Package:
    """Writes each mix as one file, with card and preview: any UI takes it where it takes a LoRA."""
    for done, mix in enumerate(job.mixes):
        emit("progress", what="export: merged mixes", done=done, total=len(job.mixes))
        target = job.folder / f"{mix_stem([part.style for part in mix.parts])}.safetensors"
        _merge(mix, target, emit)
        header = mix_header(job, mix, target)
        write_with_header(target, target, header)
        write_json(target.with_suffix(".json"), _card(job, mix, header))
        if mix.preview:
            write_preview(mix.preview, target.with_suffix(".preview.png"))
    return package_of(
        "mixes", job.folder, "an extra: each is one LoRA that holds a whole mix; copy where the others go"
    )


def mix_header(job: ExportJob, mix: RecommendedMix, merged: Path) -> dict[str, str]:
    """What a merged file says of itself, besides what the merge wrote: `modelspec.merged_from`, triggers, provenance."""
    sources = [read_metadata(part.lora) for part in mix.parts]
    spec, stem = job.spec, merged.stem
    dates = [source.get("modelspec.date", "") for source in sources]
    side = spec.dataset.resolution
    weights = " and ".join(f"{part.style} at {part.weight:g}" for part in mix.parts)
    doubt = reservation(job) or _others_doubt(sources)
    header = {
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.prediction_type": "epsilon",
        **read_metadata(merged),
        "ss_output_name": stem,
        "modelspec.implementation": "diffusers",
        "modelspec.title": title(stem),
        "modelspec.author": _of_all(sources, "modelspec.author"),
        "modelspec.license": _of_all(sources, "modelspec.license"),
        "modelspec.date": max(dates),
        "modelspec.description": f"{weights}, merged into one file. {doubt}".strip(),
        "modelspec.tags": ", ".join(
            dict.fromkeys([*(part.style for part in mix.parts), "mix", "style", "lora", "sd-1.5"])
        ),
        "modelspec.usage_hint": "Put all triggers first in the prompt; weight 1.",
        "modelspec.lora_default_weight": "1",
        "modelspec.hash_sha256": f"0x{model_hash(merged)}",
        "modelspec.thumbnail": thumbnail(mix.preview) if mix.preview else "",
        NARROW_KEY: sources[0].get(NARROW_KEY, ""),
        BASE_KEY: RANDOM if any(source.get(BASE_KEY) == RANDOM for source in sources) else "",
    }
    return {key: value for key, value in header.items() if value not in NO_VALUES}


def _own_part(job: ExportJob, packed: MixCandidate) -> MixPart:
    return MixPart(job.spec.name, job.spec.trigger, packed.mix[job.spec.name], job.lora)


def _part(job: ExportJob, partner: Partner, packed: MixCandidate, folder: Path) -> MixPart:
    """Another style's file, completed as its own export would, but for the thumbnail."""
    target = folder / f"{partner.style}.safetensors"
    trained = load_result(partner.run, "train", Trained)
    if trained is None:
        raise VerificationFailed(f"{partner.run.root}: its training's record is gone; fix: train {partner.style} again")
    spec = load_style(partner.run.spec)
    theirs = dataclasses.replace(
        job, spec=spec, run=partner.run, trained=trained, weights=partner.weights, lora=target, preview=None, mixes=(),
        advice=find_advice(spec, partner.run, trained),
    )  # fmt: skip
    if not target.is_file():
        write_lora(theirs)
    return MixPart(partner.style, partner.trigger, packed.mix[partner.style], target)


def _merge(mix: RecommendedMix, target: Path, emit: Emit) -> None:
    """The exact sum in half precision, which moves ΔW by 2e-4; in float32 where its small numbers do not hold that."""
    from brushset.lora.adapter import read_adapter
    from brushset.lora.merge.mix import Part
    from brushset.lora.merge.weights import Weight

    parts = [Part(part.style, read_adapter(part.lora), Weight(part.weight)) for part in mix.parts]
    if not _holds(parts, target):
        emit("note", text=f"{target.name}: in float32, since half precision does not hold its small numbers")
        _write_sum(parts, "float", target)


def _holds(parts: Sequence[Part], target: Path) -> bool:
    """Writes it in half precision; whether that held."""
    try:
        _write_sum(parts, "fp16", target)
    except VerificationFailed:
        return False
    return not _lost(parts, target)


def _write_sum(parts: Sequence[Part], dtype: str, target: Path) -> None:
    from brushset.lora.merge.method import Wanted
    from brushset.lora.merge.mix import Recipe
    from brushset.lora.merge.write import merge_adapters

    merge_adapters(parts, Recipe("concat", Wanted(), dtype), target)


def _lost(parts: Sequence[Part], target: Path) -> bool:
    """Whether a module that does something in a part does nothing in the merged file: its numbers were below 6e-8."""
    from brushset.lora.adapter import read_adapter

    alive = {name for part in parts for name, factor in part.adapter.factors.items() if _acts(factor)}
    return any(not _acts(factor) for name, factor in read_adapter(target).factors.items() if name in alive)


def _acts(factor: Factors) -> bool:
    return bool(factor.up.any()) and bool(factor.down.any())


def _card(job: ExportJob, mix: RecommendedMix, header: Mapping[str, str]) -> dict[str, str | float]:
    calls = mix_calls(mix.parts)
    return {
        "description": header["modelspec.description"],
        "sd version": "SD1",
        "activation text": header["modelspec.trigger_phrase"],
        "preferred weight": 1.0,
        "negative text": job.spec.export.negative_prompt,
        "notes": " ".join(filter(None, (f"The same as {calls}, in one file.", mix.reason, mix.note))),
    }


def _others_doubt(sources: Sequence[Mapping[str, str]]) -> str:
    """What another part's description says against itself."""
    for source in sources:
        if "it shows that the machinery runs" in source.get("modelspec.description", ""):
            return f"Of them {source['ss_output_name']} only shows that the machinery runs."
    return ""


def _of_all(sources: Sequence[Mapping[str, str]], key: str) -> str:
    """What all parts say, each value once: a mix stands under every one of their licences."""
    return ", ".join(dict.fromkeys(filter(None, (source.get(key) for source in sources))))
