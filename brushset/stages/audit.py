"""Can these images be trained on? Measures, judges and writes audit.json; nothing of the user's is touched.

What is measured, which findings there are and what makes a set unusable: brushset/audit. An unusable set ends the run
here, before anything is prepared, with every reason and with the option that goes on all the same.
"""

from __future__ import annotations

from brushset.audit.folder import audit_folder
from brushset.audit.result import write_audit
from brushset.audit.settings import AUDIT_KEYS, AuditSettings
from brushset.audit.summary import refusal_of
from brushset.images import source_digest
from brushset.listing import list_folder
from brushset.page.audit import write_audit_page
from brushset.paths import PROJECT, RunPaths
from brushset.pipeline import Stage, StageContext
from brushset.records import Audit
from brushset.spec import StyleSpec


def _run(context: StageContext) -> Audit:
    folder = context.spec.images_dir(PROJECT)
    settings = AuditSettings.of(context.spec)
    result = audit_folder(folder, settings, context.emit)
    refused = result.audit.verdict == "unusable"
    target = context.run.logs / "audit" if refused else context.workdir  # a stage that fails publishes nothing
    write_audit(target, result)
    page = write_audit_page(target, context.spec.name, result, settings)
    if refused:
        raise refusal_of(result.audit, folder, page)
    return result.audit


def _outside(spec: StyleSpec, _run: RunPaths) -> object:
    """The images' bytes, what was left out, and which captions there are but not what they say: a changed caption
    re-does no image.
    """
    folder = spec.images_dir(PROJECT)
    listing = list_folder(folder)
    images = {path.relative_to(folder).as_posix() for path in listing.images}
    digests = {path: digest if path in images else "" for path, digest in source_digest(folder).items()}
    return [digests, [str(item) for item in listing.left_out]]


STAGE = Stage(name="audit", record=Audit, run=_run, reads=AUDIT_KEYS, outside=_outside, output="audit", version=2)
