"""Captioners: one file each, one line in the table. They write what no sidecar says: content only, no trigger."""

from __future__ import annotations

from collections.abc import Callable

from brushset.captioners.blip import BlipCaptioner
from brushset.captioners.filename import FilenameCaptioner
from brushset.captioners.interrogator import InterrogatorCaptioner
from brushset.captioners.sidecar import SidecarCaptioner
from brushset.captioners.trigger_only import TriggerOnlyCaptioner
from brushset.captioners.wd14 import Wd14Captioner
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
