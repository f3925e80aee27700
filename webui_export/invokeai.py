"""What InvokeAI takes: the file alone. It copies what its model manager installs into a database of its own, and reads
no card beside it, so trigger and weight are typed in there.
"""

from __future__ import annotations

from brushset.files import link_or_copy
from brushset.protocols import ExportJob
from brushset.records import Package
from webui_export.a1111 import package_of


def export_invokeai(job: ExportJob) -> Package:
    """Writes `<stem>.safetensors`."""
    link_or_copy(job.lora, job.folder / job.lora.name)
    spec = job.spec
    return package_of(
        "invokeai",
        job.folder,
        f"Model Manager, Add Model, path of {job.lora.name}; then give it the trigger phrase {spec.trigger} and the "
        f"default weight {job.advice.weight:g}",
    )
