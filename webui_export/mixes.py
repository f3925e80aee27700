"""The mixes that packages hold: those that were evaluated with this style, each also as one merged file.

The other adapters are the newest of their styles on the same base, as evaluation takes them. Their headers are completed
from their own runs, without a picture: what another style's evaluation has drawn by now must not change these bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from brushset.errors import VerificationFailed
from brushset.files import write_json
from brushset.load import load_style
from brushset.log import silent
from brushset.lora.metadata import model_hash, read_metadata
from brushset.partners import Partner, find_partners
from brushset.pipeline import load_record
from brushset.protocols import Emit, ExportJob, MixPart, RecommendedMix
from brushset.records import Cell, EvalReport, Package, Trained
from webui_export.a1111 import package_of
from webui_export.header import reservation, title
from webui_export.lora_file import write_lora, write_with_header
from webui_export.names import mix_stem
from webui_export.pictures import thumbnail, write_preview
from webui_export.verify.header import NO_VALUES
from webui_export.verify.lora import NARROW_KEY


def find_mixes(job: ExportJob, report: EvalReport, folder: Path) -> tuple[RecommendedMix, ...]:
    """The mixes of the evaluation's grid that this style stands first in, the others' files written into `folder`."""
    partners = {partner.style: partner for partner in find_partners(job.spec, job.run).chosen}
    mixes = []
    for cell in report.cells:
        others = [style for style in cell.mix if style != job.spec.name]
        if list(cell.mix)[:1] != [job.spec.name] or not others or not set(others) <= partners.keys():
            continue
        parts = [_own_part(job, cell), *(_part(job, partners[style], cell, folder) for style in others)]
        mixes.append(RecommendedMix(tuple(parts), job.run.root / cell.images[0] if cell.images else None))
    return tuple(mixes)


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
    }
    return {key: value for key, value in header.items() if value not in NO_VALUES}


def _own_part(job: ExportJob, cell: Cell) -> MixPart:
    return MixPart(job.spec.name, job.spec.trigger, cell.mix[job.spec.name], job.lora)


def _part(job: ExportJob, partner: Partner, cell: Cell, folder: Path) -> MixPart:
    """Another style's file, completed as its own export would, but for the thumbnail."""
    target = folder / f"{partner.style}.safetensors"
    record = load_record(partner.run, "train")
    if record is None:
        raise VerificationFailed(f"{partner.run.root}: its training's record is gone; fix: train {partner.style} again")
    trained = Trained.model_validate(record.data)
    spec = load_style(partner.run.spec)
    theirs = dataclasses.replace(
        job, spec=spec, run=partner.run, trained=trained, weights=partner.weights, lora=target, preview=None, mixes=()
    )
    if not target.is_file():
        write_lora(theirs)
    return MixPart(partner.style, partner.trigger, cell.mix[partner.style], target)


def _merge(mix: RecommendedMix, target: Path, emit: Emit) -> None:
    """The exact sum in half precision, which moves ΔW by 2e-4; in float32 where its small numbers do not hold that."""
    from brushset.lora.adapter import read_adapter
    from brushset.lora.merge.method import Wanted
    from brushset.lora.merge.mix import Part, Recipe
    from brushset.lora.merge.weights import Weight
    from brushset.lora.merge.write import merge_adapters

    parts = [Part(part.style, read_adapter(part.lora), Weight(part.weight)) for part in mix.parts]
    try:
        merge_adapters(parts, Recipe("concat", Wanted(), "fp16"), target)
    except VerificationFailed:
        emit("note", text=f"{target.name}: in float32, since half precision does not hold its small numbers")
        merge_adapters(parts, Recipe("concat", Wanted(), "float"), target)


def _card(job: ExportJob, mix: RecommendedMix, header: Mapping[str, str]) -> dict[str, str | float]:
    calls = " ".join(f"<lora:{part.style}:{part.weight:g}>" for part in mix.parts)
    return {
        "description": header["modelspec.description"],
        "sd version": "SD1",
        "activation text": header["modelspec.trigger_phrase"],
        "preferred weight": 1.0,
        "negative text": job.spec.export.negative_prompt,
        "notes": f"The same as {calls}, in one file.",
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
