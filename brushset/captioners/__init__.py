"""Captioners: one file each, one line in the table. They write what no sidecar says: content only, no trigger."""

from __future__ import annotations

from collections.abc import Callable

from brushset.captioners.blip import BlipCaptioner, blip_weights
from brushset.captioners.filename import FilenameCaptioner
from brushset.captioners.interrogator import InterrogatorCaptioner, ranking_weights
from brushset.captioners.sidecar import SidecarCaptioner
from brushset.captioners.trigger_only import TriggerOnlyCaptioner
from brushset.captioners.wd14 import Wd14Captioner, tagger_weights
from brushset.captioners.weights import Weights
from brushset.protocols import Captioner
from brushset.spec import CaptionSection

CAPTIONERS: dict[str, Callable[[CaptionSection], Captioner]] = {
    "interrogator": InterrogatorCaptioner,
    "blip": BlipCaptioner,
    "wd14": Wd14Captioner,
    "filename": FilenameCaptioner,
    "sidecar": SidecarCaptioner,
    "trigger-only": TriggerOnlyCaptioner,
}


def weights_of(section: CaptionSection) -> list[Weights]:
    """All that a style's captioner would read, so that it can be fetched beforehand."""
    if section.captioner == "wd14":
        return [tagger_weights(section)]
    ranked = section.captioner == "interrogator" and section.mode != "caption"
    blip = section.captioner in {"interrogator", "blip"}
    return [*([blip_weights(section)] if blip else []), *(ranking_weights(section) if ranked else [])]
