"""What AUTOMATIC1111, Forge and SwarmUI take: the LoRA, a card's settings and a card's picture, the same three for all.

The card's click inserts `<lora:NAME:weight> activation text`. A .txt beside the file would become its description, so
there is none, and no file of ours is called `<stem>.json` but the card's.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from brushset.files import link_or_copy, list_files, write_json
from brushset.page.template import sentence
from brushset.protocols import Exporter, ExportJob
from brushset.records import Package
from webui_export.header import base_name, describe
from webui_export.names import mix_calls
from webui_export.pictures import write_preview

FOLDERS = {"a1111": "models/Lora", "forge": "models/Lora", "swarmui": "Models/Lora"}
_NAMES = {"a1111": "AUTOMATIC1111", "forge": "Forge", "swarmui": "SwarmUI"}


def card_exporter(target: str) -> Exporter:
    """The exporter of one of FOLDERS."""
    return partial(_export, target)


def _export(target: str, job: ExportJob) -> Package:
    """Writes `<stem>.safetensors`, `<stem>.json` and `<stem>.preview.png`."""
    stem, folder = job.lora.stem, job.folder / FOLDERS[target]
    link_or_copy(job.lora, folder / job.lora.name)
    write_json(folder / f"{stem}.json", card_settings(job))
    if job.preview:
        write_preview(job.preview, folder / f"{stem}.preview.png")
    call = f"click its card, or write {job.spec.trigger} and choose it under LoRAs, weight {job.advice.weight:g}"
    if target != "swarmui":
        call = f"refresh the Lora tab, then prompt {prompt_call(job)}"
    top = FOLDERS[target].partition("/")[0]
    return package_of(target, job.folder, f"copy {top}/ over that of {_NAMES[target]}; {call}")


def card_settings(job: ExportJob) -> dict[str, str | float]:
    """The card's keys; "preferred weight" is a number, 0 would switch it off."""
    return {
        "description": describe(job),
        "sd version": "SD1",
        "activation text": job.spec.trigger,
        "preferred weight": job.advice.weight,
        "negative text": job.spec.export.negative_prompt,
        "notes": card_notes(job),
    }


def card_notes(job: ExportJob) -> str:
    """How it was made, and how it goes with others."""
    spec = job.spec
    lines = [f"{job.advice.steps} steps on {base_name(spec.base.model)} by {job.trained.engine}."]
    lines += [sentence(job.advice.reason)] if job.advice.reason else []
    if spec.train.clip_skip > 1:
        lines.append(f"Clip skip {spec.train.clip_skip}.")
    for mix in job.mixes:
        calls = mix_calls(mix.parts)
        others = ", ".join(part.style for part in mix.parts[1:])
        lines.append(f"With {others}: {calls} {', '.join(part.trigger for part in mix.parts)}")
        lines += [mix.note] if mix.note else []
    return "\n".join(lines)


def prompt_call(job: ExportJob) -> str:
    """What calls the LoRA in a prompt of A1111 or Forge."""
    return f"<lora:{job.lora.stem}:{job.advice.weight:g}> {job.spec.trigger}"


def package_of(target: str, folder: Path, install: str) -> Package:
    """The record of what was written."""
    files = tuple(path.relative_to(folder).as_posix() for path in list_files(folder))
    return Package(target=target, folder=folder.name, files=files, install=install)
