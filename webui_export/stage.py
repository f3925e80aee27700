"""The stage `export`: one folder a UI, each holding just what is dropped in."""

from __future__ import annotations

from pathlib import Path

from brushset.errors import UsageError
from brushset.pipeline import Stage, StageContext
from brushset.protocols import ExportJob
from brushset.records import EvalReport, Exports, Package, Trained
from webui_export import EXPORTERS


def check_targets(targets: tuple[str, ...]) -> None:
    """Raises UsageError where a target has no exporter; worth asking before hours of training."""
    unknown = [target for target in targets if target not in EXPORTERS]
    if unknown:
        raise UsageError(f'[export] targets: unknown "{unknown[0]}"; known: {", ".join(EXPORTERS)}')


def export(context: StageContext) -> Exports:
    """Writes export/<target>/ for every target of the spec."""
    spec, trained = context.spec, context.get(Trained)
    check_targets(spec.export.targets)
    preview = _preview(context)
    packages: list[Package] = []
    for index, target in enumerate(spec.export.targets):
        context.emit("progress", what=f"export: {target}", done=index, total=len(spec.export.targets))
        folder = context.workdir / target
        folder.mkdir()
        job = ExportJob(
            spec=spec,
            run=context.run,
            trained=trained,
            weights=context.run.root / trained.weights,
            preview=preview,
            folder=folder,
        )
        packages.append(EXPORTERS[target](job).model_copy(update={"folder": f"export/{target}"}))
    return Exports(packages=tuple(packages), trigger=spec.trigger, weight=spec.export.weight)


def _preview(context: StageContext) -> Path | None:
    """The first image of the adapter alone: one place of the grid for all styles, not the luckiest of them."""
    name = context.spec.name
    alone = [cell for cell in context.get(EvalReport).cells if list(cell.mix) == [name] and cell.images]
    return context.run.root / alone[0].images[0] if alone else None


STAGE = Stage(
    name="export",
    record=Exports,
    run=export,
    reads=("export", "trigger", "name", "description", "base.model", "dataset.resolution", "evaluate", "smoke"),
    needs=("train", "evaluate"),
    output="export",
)
