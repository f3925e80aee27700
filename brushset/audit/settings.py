"""What an audit goes by: the dataset section, the trainer's bucket rules, and how many processes may decode."""

from __future__ import annotations

from dataclasses import dataclass

from brushset.buckets import BUCKET_KEYS, BucketRules
from brushset.spec import DatasetSection, StyleSpec

# What of a spec an audit's result depends on.
AUDIT_KEYS = ("dataset", *BUCKET_KEYS)


@dataclass(frozen=True)
class AuditSettings:
    """`workers`: processes that decode; None takes as many as there are cores, and none for a small set."""

    dataset: DatasetSection
    rules: BucketRules
    workers: int | None = None

    @classmethod
    def of(cls, spec: StyleSpec) -> AuditSettings:
        """As a style is trained."""
        return cls(spec.dataset, BucketRules.of(spec))
