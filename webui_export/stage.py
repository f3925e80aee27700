"""The stage `export`: one folder a UI, laid out as that UI's own, the hub's, the mixes; read again before it is published.

The file is written once, into a folder that does not outlive the stage, and linked into each package. Nothing that fails
its verification gets out: the pipeline renames the whole folder into place only after this returns.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from brushset.errors import UsageError, VerificationFailed
from brushset.files import write_atomic
from brushset.partners import partner_digests
from brushset.pipeline import Stage, StageContext
from brushset.protocols import ExportJob
from brushset.records import EvalReport, Exports, Package, Trained
from webui_export import EXPORTERS
from webui_export.advice import find_advice, path_in_run
from webui_export.install_text import install_text
from webui_export.lora_file import write_lora
from webui_export.mixes import export_mixes, find_mixes
from webui_export.model_card import civitai_text, export_hub
from webui_export.names import require_stem
from webui_export.samples import alone_cell, ordered_samples
from webui_export.verify import verify_package, write_sums

DRAFTS = ".drafts"


def check_targets(targets: tuple[str, ...]) -> None:
    """Raises UsageError where a target has no exporter; worth asking before hours of training."""
    unknown = [target for target in targets if target not in EXPORTERS]
    if unknown or not targets:
        found = f'unknown "{unknown[0]}"' if unknown else "none"
        raise UsageError(f"[export] targets: {found}; known: {', '.join(EXPORTERS)}")


def export(context: StageContext) -> Exports:
    """Writes export/<target>/ for every target of the spec, hub/, mixes/ and install.md, and verifies them.

    Raises:
        VerificationFailed: a UI would not take something as it is meant; every finding, a line each.
    """
    spec, root = context.spec, context.workdir
    check_targets(spec.export.targets)
    (root / DRAFTS).mkdir()
    job = _prepare(context, root / DRAFTS)
    packages = _pack(context, job)
    shutil.rmtree(root / DRAFTS)
    write_atomic(root / "install.md", install_text(job, spec.export.targets))
    write_atomic(root / "civitai.md", civitai_text(job))
    write_sums(root)
    found = verify_package(root)
    if found.faults:
        raise VerificationFailed.of_many([f"export: {fault}" for fault in found.faults])
    for note in found.notes:
        context.emit("note", text=note)
    placed = (package.model_copy(update={"folder": f"export/{package.target}"}) for package in packages)
    return Exports(
        packages=tuple(placed),
        trigger=spec.trigger,
        weight=job.advice.weight,
        weights=path_in_run(job.trained, job.advice),
        weights_sha256=job.advice.sha256,
        epoch=job.advice.epoch,
        reason=job.advice.reason,
        preview=job.preview.relative_to(context.run.root).as_posix() if job.preview else "",
    )


def _prepare(context: StageContext, drafts: Path) -> ExportJob:
    """The job with the finished file, and those of the styles that it is mixed with."""
    spec, trained = context.spec, context.get(Trained)
    advice = find_advice(spec, context.run, trained)
    job = ExportJob(
        spec=spec,
        run=context.run,
        trained=trained,
        weights=context.run.root / path_in_run(trained, advice),
        lora=drafts / f"{require_stem(spec.name)}.safetensors",
        preview=_preview(context),
        folder=drafts,
        advice=advice,
    )
    if advice.reason:
        context.emit("note", text=f"packed: {advice.reason}")
    for note in write_lora(job):
        context.emit("note", text=note)
    return dataclasses.replace(job, mixes=find_mixes(job, context.get(EvalReport), drafts))


def _pack(context: StageContext, job: ExportJob) -> list[Package]:
    packages = []
    targets = context.spec.export.targets
    for done, target in enumerate(targets):
        context.emit("progress", what=f"export: {target}", done=done, total=len(targets))
        packages.append(EXPORTERS[target](_in_folder(job, context.workdir / target)))
    packages.append(export_hub(_in_folder(job, context.workdir / "hub"), context.get(EvalReport)))
    if job.mixes and context.spec.export.merge_mixes:
        packages.append(export_mixes(_in_folder(job, context.workdir / "mixes"), context.emit))
    return packages


def _in_folder(job: ExportJob, folder: Path) -> ExportJob:
    folder.mkdir()
    return dataclasses.replace(job, folder=folder)


def _preview(context: StageContext) -> Path | None:
    """The best sample of the adapter alone."""
    report, style = context.get(EvalReport), context.spec.name
    cell, places = alone_cell(report, style), ordered_samples(context.run, report, style)
    return context.run.root / cell.images[places[0]] if cell else None


STAGE = Stage(
    name="export",
    record=Exports,
    run=export,
    reads=(
        "export",
        "trigger",
        "name",
        "description",
        "base.model",
        "dataset.resolution",
        "evaluate",
        "train",
        "smoke",
    ),
    needs=("train", "choose", "evaluate"),
    output="export",
    outside=partner_digests,
    version=3,
)
