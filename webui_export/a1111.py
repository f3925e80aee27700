"""What AUTOMATIC1111 and Forge take: the LoRA, a card's settings and a card's picture. SwarmUI reads the same three.

The card's click inserts `<lora:NAME:weight> activation text`. A .txt beside the file would become its description, so
there is none.
"""

from __future__ import annotations

from brushset.files import write_json
from brushset.protocols import ExportJob
from brushset.records import Package
from webui_export.lora_file import base_name, describe, lora_stem, write_lora, write_preview


def export_a1111(job: ExportJob) -> Package:
    """Writes `<stem>.safetensors`, `<stem>.json` and `<stem>.preview.png`."""
    stem = lora_stem(job)
    sidecar = job.folder / f"{stem}.json"
    write_json(sidecar, card_settings(job))
    written = [write_lora(job), sidecar, write_preview(job)]
    return Package(
        target="a1111",
        folder=job.folder.name,
        files=tuple(path.name for path in written if path),
        install=f"copy all into models/Lora of AUTOMATIC1111 or Forge, then prompt <lora:{stem}:{job.spec.export.weight:g}> {job.spec.trigger}",
    )


def card_settings(job: ExportJob) -> dict[str, str | float]:
    """The sidecar's keys; "preferred weight" is a number, 0 would switch it off."""
    export = job.spec.export
    return {
        "description": describe(job),
        "sd version": "SD1",
        "activation text": job.spec.trigger,
        "preferred weight": export.weight,
        "negative text": export.negative_prompt,
        "notes": f"{job.trained.steps} steps on {base_name(job.spec.base.model)} by {job.trained.engine}; run {job.run.run_id}",
    }
