"""What ComfyUI takes: the LoRAs with a picture, and workflows that use them, for this style and for every mix.

`models/` and `user/` are laid out as ComfyUI's own folder is: what lies in user/default/workflows stands in its sidebar.
A picture of `drag_in/` opens its workflow where it is dropped on the canvas; `api/` is for POST /prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PureWindowsPath

from brushset.files import link_or_copy, write_json
from brushset.protocols import ExportJob, RecommendedMix
from brushset.records import Package
from webui_export.a1111 import package_of
from webui_export.names import mix_stem
from webui_export.pictures import write_carrier, write_preview
from webui_export.verify.comfy_package import API, API_SUFFIX, LORAS, PICTURES, WORKFLOWS
from webui_export.workflow import DEFAULT_CHECKPOINT, LoraUse, Sampling, api_workflow, chain_nodes, ui_workflow


def export_comfyui(job: ExportJob) -> Package:
    """Writes the LoRAs of the style and its mixes, and for each of them the workflow in three forms."""
    for lora in (job.lora, *(part.lora for mix in job.mixes for part in mix.parts)):
        link_or_copy(lora, job.folder / LORAS / lora.name)
    if job.preview:
        write_preview(job.preview, job.folder / LORAS / f"{job.lora.stem}.preview.png")
    alone = LoraUse(job.lora.stem, job.lora.name, job.advice.weight)
    _write_workflow(job, job.lora.stem, ([alone], [job.spec.trigger]), job.preview)
    for mix in job.mixes:
        _write_workflow(job, mix_stem([part.style for part in mix.parts]), _uses(mix), mix.preview)
    install = f"copy models/ and user/ over those of ComfyUI, then open {job.lora.stem} under Workflows"
    return package_of("comfyui", job.folder, install)


def sampling_of(job: ExportJob, triggers: Sequence[str]) -> Sampling:
    """The workflow's settings: those of the evaluation's grid, with the triggers in front of its first prompt."""
    spec, settings = job.spec, job.spec.evaluate
    model = PureWindowsPath(spec.base.model)  # takes both kinds of slashes
    return Sampling(
        checkpoint=model.name if model.suffix == ".safetensors" else DEFAULT_CHECKPOINT,
        prompt=", ".join([*dict.fromkeys(triggers), *settings.prompts[:1]]),
        negative_prompt=spec.export.negative_prompt,
        width=settings.width,
        height=settings.height,
        seed=settings.seeds[0] if settings.seeds else 1,
        steps=settings.steps,
        guidance=settings.guidance,
        clip_skip=spec.train.clip_skip,
        filename_prefix=spec.name,
    )


def _uses(mix: RecommendedMix) -> tuple[list[LoraUse], list[str]]:
    uses = [LoraUse(part.style, part.lora.name, part.weight) for part in mix.parts]
    return uses, [part.trigger for part in mix.parts]


def _write_workflow(
    job: ExportJob, stem: str, used: tuple[Sequence[LoraUse], Sequence[str]], picture: Path | None
) -> None:
    loras, triggers = used
    nodes = chain_nodes(loras, sampling_of(job, triggers))
    ui, api = ui_workflow(nodes), api_workflow(nodes)
    write_json(job.folder / WORKFLOWS / f"{stem}.json", ui)
    write_json(job.folder / API / f"{stem}{API_SUFFIX}", api)
    if picture:
        target = job.folder / PICTURES / f"{stem}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        write_carrier(picture, target, ui, api)
