"""ComfyUI's part of a package: the workflows in both forms, the pictures that carry them, and the LoRAs that they name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from webui_export.verify.workflow import (
    MAX_PICTURE_BYTES,
    api_faults,
    carried,
    forms_agree,
    loras_of,
    prompt_of,
    read_content,
    ui_faults,
)

WORKFLOWS, API, PICTURES, LORAS = "user/default/workflows", "api", "drag_in", "models/loras"
API_SUFFIX = ".api.json"


def comfy_faults(root: Path, triggers: Mapping[str, str]) -> Iterator[tuple[Path, str]]:
    """(file, what is wrong) of a package's ComfyUI folder. `triggers`: LoRA's file name → trigger."""
    there = {path.name for path in (root / LORAS).glob("*.safetensors")}
    drawn = {path.stem: path for path in sorted((root / WORKFLOWS).glob("*.json"))}
    posted = {path.name.removesuffix(API_SUFFIX): path for path in sorted((root / API).glob(f"*{API_SUFFIX}"))}
    for stem, path in drawn.items():
        for fault in ui_faults(read_content(path)):
            yield path, fault
        if stem not in posted:
            yield path, f"has no {API}/{stem}{API_SUFFIX} beside it"
    for stem, path in posted.items():
        content = read_content(path)
        faults = list(api_faults(content))
        yield from ((path, fault) for fault in faults or _uses(content, there, triggers))
        if not faults and stem in drawn and not forms_agree(read_content(drawn[stem]), content):
            yield path, f"is another workflow than {WORKFLOWS}/{stem}.json"
    for picture in sorted((root / PICTURES).glob("*.png")):
        stem = picture.stem
        ui, api = (read_content(found[stem]) if stem in found else None for found in (drawn, posted))
        yield from ((picture, fault) for fault in _picture(picture, ui, api))


def _uses(api: Mapping[str, Any], there: set[str], triggers: Mapping[str, str]) -> Iterator[str]:
    prompt = prompt_of(api)
    for name in loras_of(api):
        if name not in there:
            yield f"names {name}, which is not in {LORAS}: ComfyUI refuses the workflow"
        elif (trigger := triggers.get(name)) and trigger not in prompt:
            yield f'its prompt has no "{trigger}", which {name} was trained to follow'


def _picture(picture: Path, ui: Any, api: Any) -> Iterator[str]:
    if picture.stat().st_size > MAX_PICTURE_BYTES:
        yield f"has {picture.stat().st_size} bytes, where at most {MAX_PICTURE_BYTES} belong"
    try:
        workflow, prompt = carried(picture)
    except (OSError, SyntaxError, ValueError) as error:
        yield f"is no picture that can be read: {error}"
        return
    if workflow is None:
        yield "carries no workflow: dragged onto the canvas it would open nothing"
    elif workflow != ui:
        yield f"carries another workflow than {WORKFLOWS}/{picture.stem}.json"
    if workflow is not None and prompt != api:
        yield f"carries another prompt than {API}/{picture.stem}{API_SUFFIX}"
