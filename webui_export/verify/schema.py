"""What a ComfyUI workflow looks like, in both forms: built from the structure of the templates that ComfyUI bundles.

The UI's form (version 0.4): nodes with numbered slots, links as `[id, from node, from slot, to node, to slot, TYPE]`,
and a node's own values in `widgets_values`, by position. The API's: by id, `class_type` and `inputs`, where a link is
`["4", 0]`. The frontend's templates hold more than this asks for; unknown keys are let be. Read of templates/default.json
of Comfy-Org/workflow_templates, and of what lora.png and lora_multiple.png of ComfyUI_examples carry.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr

LINK_TYPES = {"MODEL", "CLIP", "VAE", "CONDITIONING", "LATENT", "IMAGE"}
Place = Annotated[list[float], Field(min_length=2, max_length=2)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow")


class Input(_Part):
    """A slot that a link ends in."""

    name: StrictStr
    type: StrictStr
    link: StrictInt | None


class Output(_Part):
    """A slot that links begin at."""

    name: StrictStr
    type: StrictStr
    links: list[StrictInt] | None
    slot_index: StrictInt | None = None


class UINode(_Part):
    """One box on the canvas."""

    id: StrictInt
    type: StrictStr
    pos: Place
    size: Place | dict[str, float]  # {"0": 315, "1": 98} in files of before 2024
    flags: dict[str, Any]
    order: StrictInt
    mode: Literal[0, 2, 4]
    inputs: list[Input] = []
    outputs: list[Output] = []
    properties: dict[str, Any]
    widgets_values: list[Any] = []


class UIWorkflow(_Part):
    """The canvas's form."""

    last_node_id: StrictInt
    last_link_id: StrictInt
    nodes: Annotated[list[UINode], Field(min_length=1)]
    links: list[tuple[StrictInt, StrictInt, StrictInt, StrictInt, StrictInt, StrictStr]]
    groups: list[Any]
    config: dict[str, Any]
    extra: dict[str, Any]
    version: Annotated[float, Field(ge=0.4, le=0.4)]


class APINode(BaseModel):
    """One node as POST /prompt takes it."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    class_type: StrictStr
    inputs: dict[str, Any]
    meta: dict[str, Any] = Field(default_factory=dict, alias="_meta")


class Kind(BaseModel):
    """A node of ComfyUI's core: what feeds it, what it gives, and its widgets: name → type, by position. A widget whose
    name begins with `_` is the canvas's own: the API has no such input.
    """

    inputs: Mapping[str, str] = {}
    outputs: tuple[str, ...] = ()
    widgets: Mapping[str, tuple[type, ...]] = {}


_TEXT, _WHOLE, _NUMBER = (str,), (int,), (int, float)
KINDS: Mapping[str, Kind] = {
    "CheckpointLoaderSimple": Kind(outputs=("MODEL", "CLIP", "VAE"), widgets={"ckpt_name": _TEXT}),
    "LoraLoader": Kind(
        inputs={"model": "MODEL", "clip": "CLIP"}, outputs=("MODEL", "CLIP"),
        widgets={"lora_name": _TEXT, "strength_model": _NUMBER, "strength_clip": _NUMBER},
    ),
    "CLIPSetLastLayer": Kind(inputs={"clip": "CLIP"}, outputs=("CLIP",), widgets={"stop_at_clip_layer": _WHOLE}),
    "CLIPTextEncode": Kind(inputs={"clip": "CLIP"}, outputs=("CONDITIONING",), widgets={"text": _TEXT}),
    "EmptyLatentImage": Kind(
        outputs=("LATENT",), widgets={"width": _WHOLE, "height": _WHOLE, "batch_size": _WHOLE}
    ),
    "KSampler": Kind(
        inputs={"model": "MODEL", "positive": "CONDITIONING", "negative": "CONDITIONING", "latent_image": "LATENT"},
        outputs=("LATENT",),
        widgets={
            "seed": _WHOLE, "_control_after_generate": _TEXT, "steps": _WHOLE, "cfg": _NUMBER,
            "sampler_name": _TEXT, "scheduler": _TEXT, "denoise": _NUMBER,
        },
    ),
    "VAEDecode": Kind(inputs={"samples": "LATENT", "vae": "VAE"}, outputs=("IMAGE",)),
    "SaveImage": Kind(inputs={"images": "IMAGE"}, widgets={"filename_prefix": _TEXT}),
}  # fmt: skip
