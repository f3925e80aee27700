"""Nobody writes captions: every image must have its own .txt. Asked for one, it names all that lack theirs."""

from __future__ import annotations

from collections.abc import Sequence

from brushset.errors import InputError
from brushset.files import shown
from brushset.images import sidecar_of
from brushset.protocols import Describe, Emit, Subject
from brushset.spec import CaptionSection

_SHOWN = 20


class SidecarCaptioner:
    """Refuses. All missing captions come in one batch, so that one error names them all."""

    name = "sidecar"
    settings = ""
    batch_size = 1 << 30

    def __init__(self, section: CaptionSection) -> None:
        pass

    def weights(self) -> str:
        """None."""
        return ""

    def load(self, emit: Emit) -> Describe:  # noqa: ARG002 - the protocol's
        """Raises an InputError on the first image."""
        return _refuse


def _refuse(subjects: Sequence[Subject]) -> list[str]:
    if not subjects:
        return []
    findings = []
    for subject in sorted(subjects, key=lambda subject: subject.source.as_posix())[:_SHOWN]:
        text = sidecar_of(subject.source)
        state = "empty" if text.is_file() else "not there"
        findings.append(f'{shown(text)}: {state}, and captioner = "sidecar" takes captions from such files alone')
    if len(subjects) > _SHOWN:
        findings.append(f"… and {len(subjects) - _SHOWN} more")
    findings.append(
        f"{len(subjects)} images have no caption of their own; fix: write these files, or choose who writes them: "
        "--set caption.captioner=blip"
    )
    raise InputError.of_many(findings)
