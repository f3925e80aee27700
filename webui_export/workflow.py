"""ComfyUI workflows with any number of LoRAs in a chain, in the form for people and in the API's.

Both forms are rendered from one list of nodes, so that they cannot differ. Every LoraLoader takes model and clip from the
one before; both prompts take clip from the last, or from the node that skips CLIP's last layers behind it, the sampler
its model from the last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# The file that ComfyUI's own templates name for SD 1.5, and from where its frontend offers to fetch it.
DEFAULT_CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"
_CHECKPOINT_URL = (
    f"https://huggingface.co/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/{DEFAULT_CHECKPOINT}?download=true"
)
_COLUMN_PX = 350


@dataclass(frozen=True)
class LoraUse:
    """One LoraLoader."""

    title: str
    file: str
    strength: float


@dataclass(frozen=True)
class Sampling:
    """Everything in a workflow that is not a LoRA."""

    checkpoint: str
    prompt: str
    negative_prompt: str
    width: int = 512
    height: int = 512
    seed: int = 1
    steps: int = 25
    guidance: float = 7.0
    clip_skip: int = 1
    sampler: str = "dpmpp_2m"
    scheduler: str = "karras"
    filename_prefix: str = "lora"


@dataclass(frozen=True)
class Node:
    """One node of both forms. `links` names, by input, the node, slot and type that feeds it; `widgets` are its own
    values in the UI's order; `hidden` are widgets that only the UI has, after the widget of the same key; `models` are
    files that the frontend offers to fetch where they are missing.
    """

    kind: str
    title: str
    widgets: Mapping[str, Any]
    links: Mapping[str, tuple[int, int, str]] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    hidden: Mapping[str, Any] = field(default_factory=dict)
    models: Sequence[Mapping[str, str]] = ()
    at: tuple[int, int] = (0, 0)
    size: tuple[int, int] = (315, 106)


def chain_nodes(loras: Sequence[LoraUse], sampling: Sampling) -> dict[int, Node]:
    """The nodes of a workflow with the LoRAs in a chain, by id from 1, in the order in which they run."""
    loader = Node(
        "CheckpointLoaderSimple", "Load Checkpoint", {"ckpt_name": sampling.checkpoint},
        outputs=("MODEL", "CLIP", "VAE"), at=(20, 300), size=(315, 98), models=_fetched(sampling.checkpoint),
    )  # fmt: skip
    chain = [
        Node(
            "LoraLoader", lora.title,
            {"lora_name": lora.file, "strength_model": lora.strength, "strength_clip": lora.strength},
            links={"model": (index, 0, "MODEL"), "clip": (index, 1, "CLIP")}, outputs=("MODEL", "CLIP"),
            at=(20 + index * _COLUMN_PX, 300), size=(315, 126),
        )
        for index, lora in enumerate(loras, start=1)
    ]  # fmt: skip
    last = 1 + len(chain)
    clip = (last, 1, "CLIP")
    skip = _skip_node(clip, sampling.clip_skip, at=20 + last * _COLUMN_PX)
    if skip:
        clip = (last + 1, 0, "CLIP")
    nodes = [loader, *chain, *skip, *_sampling_nodes(last, clip, sampling, first=last + len(skip) + 1)]
    return dict(enumerate(nodes, start=1))


def api_workflow(nodes: Mapping[int, Node]) -> dict[str, Any]:
    """The form that POST /prompt takes: by id, each input either a value or [node, slot]."""
    return {
        str(number): {
            "inputs": {
                **{name: [str(source), slot] for name, (source, slot, _) in node.links.items()},
                **node.widgets,
            },
            "class_type": node.kind,
            "_meta": {"title": node.title},
        }
        for number, node in nodes.items()
    }


def ui_workflow(nodes: Mapping[int, Node]) -> dict[str, Any]:
    """The form that the canvas opens (version 0.4): nodes with places, and numbered links between slots."""
    links: list[list[Any]] = []
    for number, node in nodes.items():
        for slot, (source, source_slot, kind) in enumerate(node.links.values()):
            links.append([len(links) + 1, source, source_slot, number, slot, kind])
    return {
        "last_node_id": max(nodes),
        "last_link_id": len(links),
        "nodes": [_ui_node(number, node, links) for number, node in nodes.items()],
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def _skip_node(clip: tuple[int, int, str], layers: int, at: int) -> list[Node]:
    """What ends CLIP early, for adapters that were trained on an earlier layer; none for the last."""
    if layers <= 1:
        return []
    title, widgets = "CLIP Set Last Layer", {"stop_at_clip_layer": -layers}
    return [
        Node("CLIPSetLastLayer", title, widgets, {"clip": clip}, ("CLIP",), at=(at, 40), size=(315, 58)),
    ]


def _fetched(checkpoint: str) -> Sequence[Mapping[str, str]]:
    if checkpoint != DEFAULT_CHECKPOINT:
        return ()
    return ({"name": DEFAULT_CHECKPOINT, "url": _CHECKPOINT_URL, "directory": "checkpoints"},)


def _sampling_nodes(last: int, clip: tuple[int, int, str], sampling: Sampling, *, first: int) -> list[Node]:
    """What follows the last loader: two prompts, a latent, the sampler, the decoder, the file; ids from `first`."""
    left = 20 + (first - 1) * _COLUMN_PX
    positive, negative, latent, sampler, decoder = range(first, first + 5)
    prompts = [
        Node(
            "CLIPTextEncode", title, {"text": text},
            links={"clip": clip}, outputs=("CONDITIONING",), at=(left, top), size=(420, 160),
        )
        for title, text, top in (("Positive", sampling.prompt, 180), ("Negative", sampling.negative_prompt, 400))
    ]  # fmt: skip
    empty = Node(
        "EmptyLatentImage", "Empty Latent Image",
        {"width": sampling.width, "height": sampling.height, "batch_size": 1}, outputs=("LATENT",), at=(left, 620),
    )  # fmt: skip
    sample = Node(
        "KSampler", "KSampler",
        {
            "seed": sampling.seed, "steps": sampling.steps, "cfg": sampling.guidance,
            "sampler_name": sampling.sampler, "scheduler": sampling.scheduler, "denoise": 1.0,
        },
        links={
            "model": (last, 0, "MODEL"), "positive": (positive, 0, "CONDITIONING"),
            "negative": (negative, 0, "CONDITIONING"), "latent_image": (latent, 0, "LATENT"),
        },
        # The UI keeps a seventh widget behind the seed, "control_after_generate"; the API has no such input.
        outputs=("LATENT",), hidden={"seed": "fixed"}, at=(left + 460, 180), size=(315, 262),
    )  # fmt: skip
    decode = Node(
        "VAEDecode", "VAE Decode", {}, links={"samples": (sampler, 0, "LATENT"), "vae": (1, 2, "VAE")},
        outputs=("IMAGE",), at=(left + 810, 180), size=(210, 46),
    )  # fmt: skip
    save = Node(
        "SaveImage", "Save Image", {"filename_prefix": sampling.filename_prefix},
        links={"images": (decoder, 0, "IMAGE")}, at=(left + 1050, 180), size=(315, 270),
    )  # fmt: skip
    return [*prompts, empty, sample, decode, save]


def _ui_node(number: int, node: Node, links: Sequence[Sequence[Any]]) -> dict[str, Any]:
    incoming = {link[4]: link[0] for link in links if link[3] == number}
    widgets = [[value, *([node.hidden[key]] if key in node.hidden else [])] for key, value in node.widgets.items()]
    return {
        "id": number,
        "type": node.kind,
        "pos": list(node.at),
        "size": list(node.size),
        "flags": {},
        "order": number - 1,
        "mode": 0,
        "inputs": [
            {"name": name, "type": kind, "link": incoming[slot]}
            for slot, (name, (_, _, kind)) in enumerate(node.links.items())
        ],
        "outputs": [
            {
                "name": kind,
                "type": kind,
                "links": [link[0] for link in links if link[1] == number and link[2] == slot],
                "slot_index": slot,
            }
            for slot, kind in enumerate(node.outputs)
        ],
        "title": node.title,
        "properties": {
            "Node name for S&R": node.kind,
            "cnr_id": "comfy-core",
            **({"models": [dict(model) for model in node.models]} if node.models else {}),
        },
        "widgets_values": [value for pair in widgets for value in pair],
    }
