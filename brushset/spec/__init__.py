"""What a user may say about a style, and the default of everything he does not say.

One frozen model a section; every default stands in its field, here and nowhere else. Unknown keys, wrong types and
impossible combinations are refused (brushset.load turns them into one error that lists them all). Training keys
carry sd-scripts' names. What a learning rate means depends on alpha/dim and on the effective batch: change the three
together.
"""

from __future__ import annotations

from brushset.spec.caption import CaptionSection
from brushset.spec.evaluate import SHOWN_PROMPTS, EvaluateSection
from brushset.spec.executor import ExecutorSection, RaySection, SlurmSection
from brushset.spec.export import ExportSection
from brushset.spec.images import DEFAULT_BASE, BaseSection, DatasetSection
from brushset.spec.style import STYLE_NAME, StyleSpec
from brushset.spec.train import SUPERVISION, TrainSection

__all__ = [
    "DEFAULT_BASE",
    "SHOWN_PROMPTS",
    "STYLE_NAME",
    "SUPERVISION",
    "BaseSection",
    "CaptionSection",
    "DatasetSection",
    "EvaluateSection",
    "ExecutorSection",
    "ExportSection",
    "RaySection",
    "SlurmSection",
    "StyleSpec",
    "TrainSection",
]
