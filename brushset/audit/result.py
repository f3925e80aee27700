"""What an audit comes to, and audit.json: the summary, the groups of duplicates, and a line per image.

The file is one JSON object, written image by image and read without a detour through dicts: a set of 100,000 images
is not held twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ValidationError

from brushset.errors import UsageError
from brushset.files import atomic_file, shown
from brushset.records import Audit, AuditedImage, DuplicateGroup

AUDIT_JSON = "audit.json"


@dataclass(frozen=True)
class AuditResult:
    """What `audit_folder` returns. `images` are sorted by path.

    `thumbnails`: path → JPEG bytes of at most 160 px a side, upright, in sRGB, on the style's background. All readable
    images have one up to 600 of them; of larger sets 600 that findings concern, those that are left out first.
    """

    audit: Audit
    images: list[AuditedImage]
    groups: list[DuplicateGroup]
    thumbnails: Mapping[str, bytes] = field(default_factory=dict)


class _File(BaseModel):
    """audit.json."""

    audit: Audit
    groups: list[DuplicateGroup]
    images: list[AuditedImage]


def write_audit(folder: Path, result: AuditResult) -> None:
    """Writes audit.json into `folder`, a line per image."""
    with atomic_file(folder / AUDIT_JSON) as file:
        head = json.dumps(result.audit.model_dump(mode="json"), indent=1, ensure_ascii=False)
        file.write(f'{{"audit": {head},\n"groups": ['.encode())
        for index, group in enumerate(result.groups):
            file.write((",\n" if index else "\n").encode() + group.model_dump_json().encode())
        file.write(b'],\n"images": [')
        for index, image in enumerate(result.images):
            file.write((",\n" if index else "\n").encode() + image.model_dump_json().encode())
        file.write(b"]}\n")


def read_audit(folder: Path) -> AuditResult:
    """What `write_audit` wrote into `folder`; without thumbnails.

    Raises:
        UsageError: audit.json is not there or is not one of ours.
    """
    path = folder / AUDIT_JSON
    try:
        found = _File.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{shown(path)}: cannot be read: {error.strerror}; fix: run the audit again") from error
    except ValidationError as error:
        raise UsageError(f"{shown(path)}: no audit of this version; fix: run the audit again") from error
    return AuditResult(found.audit, found.images, found.groups)


def read_audited_images(folder: Path) -> list[AuditedImage]:
    """The images of the audit in `folder`, sorted by path. Raises as `read_audit` does."""
    return read_audit(folder).images
