"""The base model that images are made with: the one that the adapter was trained on, and no other."""

from __future__ import annotations

from brushset.bases.resolve import resolve_base
from brushset.errors import VerificationFailed
from brushset.pipeline import StageContext
from brushset.records import BaseFile, Trained


def require_base(context: StageContext) -> BaseFile:
    """The base of the spec.

    Raises:
        VerificationFailed: it is not the one that was trained on.
        UsageError, EnvironmentProblem: it cannot be had.
    """
    spec = context.spec
    base = resolve_base(spec.base.model, spec.base.revision, context.emit)
    if base.sha256 != context.get(Trained).base_sha256:
        raise VerificationFailed(
            f"{base.path}: base model {base.name} is not the one that the adapter was trained on "
            f"({base.sha256[:12]}, {context.get(Trained).base_sha256[:12]}); fix: --force train"
        )
    return base
