"""[caption]: where captions come from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from brushset.mediums import STYLE_WORDS
from brushset.spec.section import Names, Section


class CaptionSection(Section):
    """Where captions come from. Sidecar .txt files beside the images always win."""

    captioner: Literal["interrogator", "blip", "wd14", "filename", "sidecar", "trigger-only"] = Field(
        "interrogator", description="who writes the missing ones; sidecar: nobody, every image must have its own"
    )
    model: str = Field("Salesforce/blip-image-captioning-large", description="BLIP weights: HF id or folder")
    revision: str | None = Field(None, description="commit or tag of the captioner's HF id")
    clip_model: str = Field("ViT-L-14/openai", description="CLIP that clip-interrogator ranks phrases with")
    mode: Literal["caption", "fast", "classic"] = Field(
        "fast", description="clip-interrogator: BLIP alone, or with ranked phrases"
    )
    batch_size: int = Field(8, ge=1)
    max_new_tokens: int = Field(40, ge=1, le=75)
    tagger: str = Field("SmilingWolf/wd-vit-tagger-v3", description="wd14's ONNX weights: HF id or folder")
    tag_threshold: float = Field(0.35, gt=0, lt=1, description="least probability of a general tag")
    character_threshold: float = Field(0.85, gt=0, lt=1, description="least probability of a character's name")
    style_words: Names = Field(
        STYLE_WORDS,
        description="stripped from machine captions, whole: a style that is described is not bound to the trigger",
    )
    more_style_words: Names = Field((), description="of this style, besides those: what its look is called")

    @property
    def all_style_words(self) -> tuple[str, ...]:
        """Both lists, each word once."""
        return tuple(dict.fromkeys((*self.style_words, *self.more_style_words)))
