"""[export]: the packages."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from brushset.spec.section import Names, Section


class ExportSection(Section):
    """The packages."""

    targets: Names = Field(
        ("a1111", "forge", "comfyui", "invokeai", "swarmui"),
        description="all of them: further copies of the file are hard links, where the disk can make them",
    )
    weight: float | None = Field(
        None, gt=0, le=2, description="written into the packages as recommended; default: the one that evaluation chose"
    )
    negative_prompt: str = "lowres, worst quality, jpeg artifacts"
    author: str = Field("anonymous", min_length=1, description="nobody's name is taken from the machine")
    license: str = Field(
        "creativeml-openrail-m",
        min_length=1,
        description="SPDX or hub name; Stable Diffusion 1.5's own wants its use restrictions passed on",
    )
    tags: Names = Field((), description="of this style, besides its name, style, lora and sd-1.5")
    tag_frequency: Literal["full", "minimal", "none"] = Field(
        "full",
        description="captions' tags in the file's header: full as the trainer wrote them, since A1111's card shows "
        "them; minimal the trigger alone; none. Those who publish may not want to tell their captions",
    )
    merge_mixes: bool = Field(
        True, description="each recommended mix also as one file: UIs without several LoRAs a prompt can use it"
    )
