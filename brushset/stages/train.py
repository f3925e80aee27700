"""Trains with the chosen engine, and believes nothing: what is published has been opened and checked.

Each attempt writes into its own folder, so what a stray trainer of an earlier attempt still writes hurts nobody, and
only a verified attempt becomes weights/. A trainer that a killed process left behind is stopped first.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

from brushset.bases.resolve import resolve_base
from brushset.bases.tokenizer import tokenizer_dir
from brushset.engines import make_engine
from brushset.errors import EnvironmentProblem, VerificationFailed
from brushset.files import sha256_file
from brushset.log import silent
from brushset.lora.verify import verify_lora
from brushset.paths import RunPaths
from brushset.pipeline import Stage, StageContext
from brushset.process import process_file, stop_orphan
from brushset.protocols import TrainJob
from brushset.records import BaseFile, EngineConfig, Trained
from brushset.spec import StyleSpec, TrainSection

_FILE_BYTES_PER_RANK = 600_000  # 264 modules at 2 bytes a number; 37.9 MB at rank 32 were measured
_SPARE_BYTES = 200 << 20


def expected_checkpoints(name: str, epochs: int, save_every_n_epochs: int) -> set[str]:
    """Files of earlier epochs that both engines leave: never the last epoch's, which is the final file."""
    return {f"{name}-{epoch:06d}.safetensors" for epoch in range(save_every_n_epochs, epochs, save_every_n_epochs)}


def verify_trained(job: TrainJob, trained: Trained, config: EngineConfig) -> None:
    """Opens what an engine left in `job.output_dir` and holds it against what was asked for.

    Raises:
        VerificationFailed: everything that is wrong, a line each.
    """
    findings = _count_findings(job.spec, trained, config)
    kept = {checkpoint.path: checkpoint.sha256 for checkpoint in trained.checkpoints}
    for name, sha256 in {trained.weights: trained.weights_sha256, **kept}.items():
        findings += _file_findings(job, job.output_dir / name, sha256)
    if findings:
        raise VerificationFailed.of_many(findings)


def _run(context: StageContext) -> Trained:
    spec, run, emit = context.spec, context.run, context.emit
    config = context.get(EngineConfig)
    if stopped := stop_orphan(process_file(run.train_log)):
        emit("warning", text=f"stopped a trainer that an earlier, killed run left behind: process {stopped[0]}")
    _require_disk(run.root, spec.train, config.epochs)
    base = resolve_base(spec.base.model, spec.base.revision, emit)
    job = TrainJob(
        spec=spec,
        run=run,
        base=base,
        tokenizer_dir=tokenizer_dir(base),
        output_dir=context.workdir,
        steps=config.steps,
        batches_per_epoch=config.batches_per_epoch,
    )
    trained = make_engine(spec.train.engine).train(job, emit)
    verify_trained(job, trained, config)
    names = [trained.weights, *(checkpoint.path for checkpoint in trained.checkpoints)]
    for name in names:
        (context.workdir / name).chmod(0o644)  # safetensors leaves 0600: a UI under another user could not read it
    _set_aside(context.workdir, names, run.logs / "trainer")
    folder = run.weights.name
    return trained.model_copy(
        update={
            "weights": f"{folder}/{trained.weights}",
            "checkpoints": tuple(
                checkpoint.model_copy(update={"path": f"{folder}/{checkpoint.path}"})
                for checkpoint in trained.checkpoints
            ),
        }
    )


def _count_findings(spec: StyleSpec, trained: Trained, config: EngineConfig) -> list[str]:
    found = []
    if trained.weights != f"{spec.name}.safetensors":
        found.append(f"{trained.weights}: the final file is not called {spec.name}.safetensors")
    if trained.steps != config.steps:
        found.append(f"{trained.weights}: trained for {trained.steps} steps, {config.steps} were asked for")
    missing = expected_checkpoints(spec.name, config.epochs, spec.train.save_every_n_epochs)
    missing -= {checkpoint.path for checkpoint in trained.checkpoints}
    if missing:
        found.append(f"{trained.weights}: {len(missing)} epoch files are missing, the first is {min(missing)}")
    broken = [point.step for point in trained.losses if not math.isfinite(point.loss)]
    if broken:
        found.append(f"{trained.weights}: the loss was NaN or infinite at {len(broken)} steps, first at {broken[0]}")
    return found


def _file_findings(job: TrainJob, path: Path, sha256: str) -> list[str]:
    if not path.is_file():
        return [f"{path.name}: the engine said it was written, and it is not there"]
    if sha256_file(path) != sha256:
        return [f"{path.name}: changed after the engine had written it"]
    train = job.spec.train
    try:
        verify_lora(
            path,
            dim=train.network_dim,
            alpha=train.network_alpha,
            text_encoder=train.train_text_encoder,
            narrow=job.base.narrow,
        )
    except VerificationFailed as error:
        return str(error).splitlines()
    return []


def _require_disk(folder: Path, train: TrainSection, epochs: int) -> None:
    """Asks for the room of all kept epochs before hours are spent."""
    files = 1 + epochs // train.save_every_n_epochs
    width = 2 if train.save_precision == "float" else 1
    wanted = files * train.network_dim * _FILE_BYTES_PER_RANK * 2 * width + _SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise EnvironmentProblem(
            f"{folder}: {free >> 20} MiB free, {files} files want {wanted >> 20}; "
            "fix: free disk space, a larger [train] save_every_n_epochs, or --runs-dir elsewhere"
        )


def _set_aside(folder: Path, keep: Sequence[str], aside: Path) -> None:
    """Moves what else a trainer left (sample images, states) to the logs: weights/ holds adapters alone."""
    for path in sorted(folder.iterdir()):
        if path.name not in keep:
            target = aside / path.name
            shutil.rmtree(target, ignore_errors=True)
            target.unlink(missing_ok=True)
            aside.mkdir(parents=True, exist_ok=True)
            shutil.move(path, target)


def _base_digest(spec: StyleSpec, _run: RunPaths) -> str:
    """The base model's hash: another base under the same name means another training."""
    base: BaseFile = resolve_base(spec.base.model, spec.base.revision, silent)
    return base.sha256


STAGE = Stage(
    name="train",
    record=Trained,
    run=_run,
    reads=("name", "trigger", "train"),
    needs=("preprocess", "caption", "configure"),
    output="weights",
    outside=_base_digest,
)
