"""Whether a workflow would run: links that meet at both ends, values where the canvas looks for them, and LoRA files
that are there. ComfyUI answers an unknown `lora_name` with an error; a value that slipped by one place it would take.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from brushset.lora.kinds import some
from webui_export.verify.schema import KINDS, LINK_TYPES, APINode, UINode, UIWorkflow

_API = TypeAdapter(dict[str, APINode])
_AFTER_GENERATE = ("fixed", "increment", "decrement", "randomize")
MAX_PICTURE_BYTES = 8 << 20  # what ComfyUI's frontend still takes apart


def ui_faults(content: Any) -> Iterator[str]:
    """What is wrong with a workflow in the canvas's form."""
    try:
        workflow = UIWorkflow.model_validate(content)
    except ValidationError as error:
        yield _told(error)
        return
    nodes = {node.id: node for node in workflow.nodes}
    if len(nodes) != len(workflow.nodes) or workflow.last_node_id != max(nodes):
        yield f"last_node_id {workflow.last_node_id} is not the largest of {len(nodes)} different ids"
    numbers = [link[0] for link in workflow.links]
    if len(set(numbers)) != len(numbers) or workflow.last_link_id != max(numbers, default=0):
        yield f"last_link_id {workflow.last_link_id} is not the largest of {len(set(numbers))} different links"
    for node in workflow.nodes:
        yield from _node_faults(node)
    for link in workflow.links:
        yield from _link_faults(link, nodes)
    yield from _loose_ends(workflow)


def api_faults(content: Any) -> Iterator[str]:
    """What is wrong with a workflow in the API's form."""
    try:
        nodes = _API.validate_python(content)
    except ValidationError as error:
        yield _told(error)
        return
    if not any(node.class_type == "SaveImage" for node in nodes.values()):
        yield "no SaveImage: ComfyUI refuses a prompt without an output node"
    for number, node in nodes.items():
        kind = KINDS.get(node.class_type)
        if kind is None:
            yield f"node {number}: {node.class_type} is no node that we use"
            continue
        wanted = {*kind.inputs, *(name for name in kind.widgets if name[0] != "_")}
        if wanted ^ node.inputs.keys():
            yield f"node {number}: {node.class_type} takes {', '.join(sorted(wanted))}, not {', '.join(sorted(node.inputs))}"
        for name, value in node.inputs.items():
            if name in kind.inputs and not _feeds(value, nodes, kind.inputs[name]):
                yield f"node {number}: {name} is fed by {value!r}, which gives no {kind.inputs[name]}"


def forms_agree(ui: Any, api: Any) -> bool:
    """Whether both forms are one workflow: nodes, links and values."""
    return not list(ui_faults(ui)) and _as_api(UIWorkflow.model_validate(ui)) == {
        number: {"class_type": node["class_type"], "inputs": node["inputs"]} for number, node in api.items()
    }


def loras_of(api: Mapping[str, Any]) -> list[str]:
    """The files that an API workflow names, in the order of the chain."""
    return [node["inputs"]["lora_name"] for node in api.values() if node["class_type"] == "LoraLoader"]


def prompt_of(api: Mapping[str, Any]) -> str:
    """The text that the sampler takes as positive."""
    sampler = next(node["inputs"] for node in api.values() if node["class_type"] == "KSampler")
    return str(api[sampler["positive"][0]]["inputs"]["text"])


def carried(picture: Path) -> tuple[Any, Any]:
    """(workflow, prompt) in a PNG's text chunks, None where one is not there."""
    from PIL import Image

    with Image.open(picture) as image:
        image.load()
        found = dict(image.info)
    return _parsed(found.get("workflow")), _parsed(found.get("prompt"))


def read_content(path: Path) -> Any:
    """A JSON file's content, None where it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _node_faults(node: UINode) -> Iterator[str]:
    kind = KINDS.get(node.type)
    if kind is None:
        yield f"node {node.id}: {node.type} is no node that we use"
        return
    if {slot.name: slot.type for slot in node.inputs} != dict(kind.inputs):
        yield f"node {node.id}: {node.type} has inputs {[slot.name for slot in node.inputs]}, not {list(kind.inputs)}"
    if tuple(slot.type for slot in node.outputs) != kind.outputs:
        yield f"node {node.id}: {node.type} has outputs {[slot.type for slot in node.outputs]}, not {list(kind.outputs)}"
    if len(node.widgets_values) != len(kind.widgets):
        yield f"node {node.id}: {node.type} has {len(kind.widgets)} widgets, and {len(node.widgets_values)} values"
        return
    for (name, types), value in zip(kind.widgets.items(), node.widgets_values, strict=True):
        if not isinstance(value, types) or isinstance(value, bool):
            yield f"node {node.id}: {node.type}'s {name.lstrip('_')} is {value!r}"
        elif name == "_control_after_generate" and value not in _AFTER_GENERATE:
            yield f"node {node.id}: control_after_generate is {value!r}, none of {', '.join(_AFTER_GENERATE)}"


def _link_faults(link: tuple[int, int, int, int, int, str], nodes: Mapping[int, UINode]) -> Iterator[str]:
    number, source, out_slot, target, in_slot, kind = link
    begins = nodes[source].outputs[out_slot : out_slot + 1] if source in nodes else []
    ends = nodes[target].inputs[in_slot : in_slot + 1] if target in nodes else []
    if not begins or not ends:
        yield f"link {number} goes from {source}:{out_slot} to {target}:{in_slot}, which is not there"
    elif number not in (begins[0].links or ()) or ends[0].link != number:
        yield f"link {number} is not told at both its ends, {source}:{out_slot} and {target}:{in_slot}"
    elif {begins[0].type, ends[0].type, kind} != {kind} or kind not in LINK_TYPES:
        yield f"link {number} is {kind} from {begins[0].type} to {ends[0].type}"


def _loose_ends(workflow: UIWorkflow) -> Iterator[str]:
    numbers = {link[0] for link in workflow.links}
    loose = [f"{node.id}:{slot.name}" for node in workflow.nodes for slot in node.inputs if slot.link not in numbers]
    loose += [
        f"{node.id}:{slot.name}" for node in workflow.nodes for slot in node.outputs if set(slot.links or ()) - numbers
    ]
    if loose:
        yield f"{len(loose)} slots tell of links that are not there: {some(loose)}"


def _as_api(workflow: UIWorkflow) -> dict[str, Any]:
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow.links}
    return {
        str(node.id): {
            "class_type": node.type,
            "inputs": {
                **{slot.name: sources.get(slot.link or 0) for slot in node.inputs},
                **{
                    name: value
                    for name, value in zip(KINDS[node.type].widgets, node.widgets_values, strict=True)
                    if name[0] != "_"
                },
            },
        }
        for node in workflow.nodes
    }


def _feeds(value: Any, nodes: Mapping[str, APINode], kind: str) -> bool:
    if not (isinstance(value, list) and len(value) == 2 and isinstance(value[1], int)):
        return False
    source = nodes.get(value[0])
    outputs = KINDS[source.class_type].outputs if source and source.class_type in KINDS else ()
    return outputs[value[1] : value[1] + 1] == (kind,)


def _told(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"])) or "the whole"
    return f"{where}: {first['msg']}" + (f", and {error.error_count() - 1} more" if error.error_count() > 1 else "")


def _parsed(text: Any) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError):
        return None
