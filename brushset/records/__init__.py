"""What each stage says when it is done: small, typed, kept as JSON in the run. Bulky detail goes to files beside.

Paths in a record are relative to the run folder, with forward slashes, so that a run can be moved or copied.
"""

from brushset.records.base import Record
from brushset.records.dataset import (
    Audit,
    AuditedImage,
    Caption,
    CaptionFinding,
    Captions,
    DuplicateGroup,
    Finding,
    ImageVerdict,
    Measures,
    Prepared,
    PreparedImage,
    SetVerdict,
    Severity,
)
from brushset.records.results import Adapter, Cell, EvalReport, Exports, Package, Report, Score
from brushset.records.training import (
    Attempt,
    BaseFile,
    Checkpoint,
    Ending,
    EngineConfig,
    LossPoint,
    Trained,
    TrainSample,
    ValidationPoint,
)

__all__ = [
    "Adapter",
    "Attempt",
    "Audit",
    "AuditedImage",
    "BaseFile",
    "Caption",
    "CaptionFinding",
    "Captions",
    "Cell",
    "Checkpoint",
    "DuplicateGroup",
    "Ending",
    "EngineConfig",
    "EvalReport",
    "Exports",
    "Finding",
    "ImageVerdict",
    "LossPoint",
    "Measures",
    "Package",
    "Prepared",
    "PreparedImage",
    "Record",
    "Report",
    "Score",
    "SetVerdict",
    "Severity",
    "TrainSample",
    "Trained",
    "ValidationPoint",
]
