"""install.md: three lines a UI, for people who copy by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from brushset.protocols import ExportJob
from webui_export.a1111 import prompt_call
from webui_export.header import reservation


class _Guide(NamedTuple):
    name: str
    steps: tuple[str, str, str]


def install_text(job: ExportJob, targets: tuple[str, ...]) -> str:
    """The page, for the UIs that were packed."""
    guides, doubt = _guides(job), reservation(job)
    parts = [f"# How to install {job.lora.stem}"]
    parts += [f"**{doubt}**"] if doubt else []
    parts.append(
        f"By hand as below, or: `python orchestrate.py export --style {job.spec.name} --install FOLDER`, with the UI's folder."
    )
    for target in targets:
        steps = "\n".join(f"{number}. {step}" for number, step in enumerate(guides[target].steps, start=1))
        parts.append(f"## {guides[target].name}\n\n{steps}")
    return "\n\n".join(parts) + "\n"


def _guides(job: ExportJob) -> Mapping[str, _Guide]:
    file, stem, spec = job.lora.name, job.lora.stem, job.spec
    prompt = f"`{prompt_call(job)}, {spec.evaluate.prompts[0]}`" if spec.evaluate.prompts else f"`{prompt_call(job)}`"
    card = f"Press the Lora tab's refresh button; the card {stem} appears, with trigger and weight filled in."
    checkpoint = "Choose an SD 1.5 checkpoint: with SDXL the LoRA does nothing."
    return {
        "a1111": _Guide("AUTOMATIC1111", (
            f"Copy `a1111/models` over the web UI's `models`: `{file}` and its card go to `models/Lora`.",
            f"{checkpoint} {card}",
            f"Prompt: {prompt}.",
        )),
        "forge": _Guide("Forge", (
            f"Copy `forge/models` over Forge's `models`: `{file}` and its card go to `models/Lora`.",
            f"Set UI to sd. {checkpoint} {card}",
            f"Prompt: {prompt}.",
        )),
        "comfyui": _Guide("ComfyUI", (
            "Copy `comfyui/models` and `comfyui/user` over ComfyUI's, and press R.",
            f"Open the workflow {stem} in the sidebar (w), or drop a picture of `comfyui/drag_in` on the canvas.",
            "In Load Checkpoint choose an SD 1.5 checkpoint that you have, then run.",
        )),
        "invokeai": _Guide("InvokeAI", (
            f"Model Manager, Add Model: the path of `invokeai/{file}`.",
            f"On its page set the trigger phrase `{spec.trigger}` and the default weight {job.advice.weight:g}.",
            f"With an SD 1.5 model, add it under Concepts, and put {spec.trigger} first in the prompt.",
        )),
        "swarmui": _Guide("SwarmUI", (
            f"Copy `swarmui/Models` over SwarmUI's `Models`: `{file}` and its card go to `Models/Lora`.",
            f"Refresh the LoRAs tab and click {stem}; its weight starts at {job.advice.weight:g}.",
            f"With an SD 1.5 model, put {spec.trigger} first in the prompt.",
        )),
    }  # fmt: skip
