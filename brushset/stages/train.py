"""Trains with the chosen engine, and believes nothing: what is published has been opened and checked.

What an engine keeps between interruptions lies in attempts/, under this stage's digest: the same command goes on from
there, another training never does, and `--force train` begins anew. It is removed once the record of this stage stands
(brushset.session). A trainer that a killed process left behind is stopped first.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from brushset.bases.resolve import resolve_base
from brushset.bases.tokenizer import tokenizer_dir
from brushset.engines import make_engine, make_packing_engine
from brushset.errors import BrushsetError, EnvironmentProblem, VerificationFailed
from brushset.files import sha256_file
from brushset.kohya.plan import Plan, plan_asked, plan_with
from brushset.log import silent
from brushset.lora.verify import find_faults
from brushset.paths import RunPaths
from brushset.patience import choose_epoch
from brushset.pipeline import Stage, StageContext
from brushset.prepare.holdout import verify_holdout
from brushset.process import process_file, stop_orphan
from brushset.protocols import TrainJob
from brushset.records import BaseFile, EngineConfig, Prepared, Trained
from brushset.spec import StyleSpec, TrainSection

_FILE_BYTES_PER_RANK = 600_000  # 264 modules at 2 bytes a number; 37.9 MB at rank 32 were measured
_STATE_BYTES_PER_RANK = 7_200_000  # weights and Adam's two moments in float32; 227 MB at rank 32 were measured
_STATES = 3  # two are kept while the third is written
_SPARE_BYTES = 200 << 20
_DIGEST_CHARS = 12


def expected_checkpoints(name: str, epochs: int, save_every_n_epochs: int, best_epoch: int | None = None) -> set[str]:
    """Files of earlier epochs that an engine leaves: never the last epoch's, which is the final file, unless validation
    chose another epoch for that.
    """
    kept = set(range(save_every_n_epochs, epochs, save_every_n_epochs))
    if best_epoch not in (None, epochs):
        kept.add(epochs)
    return {f"{name}-{epoch:06d}.safetensors" for epoch in kept}


def verify_trained(job: TrainJob, trained: Trained) -> None:
    """Opens what an engine left in `job.output_dir` and holds it against what was asked for.

    Raises:
        VerificationFailed: everything that is wrong, a line each.
    """
    findings = _count_findings(job, trained)
    kept = {checkpoint.path: checkpoint.sha256 for checkpoint in trained.checkpoints}
    for name, sha256 in {trained.weights: trained.weights_sha256, **kept}.items():
        findings += _file_findings(job, job.output_dir / name, sha256)
    if findings:
        raise VerificationFailed.of_many(findings)


def wanted_bytes(train: TrainSection, epochs: int) -> int:
    """The room that a training takes at most: every kept epoch twice, since it is published by a copy, and the states to
    go on from.
    """
    files = 1 + epochs // train.save_every_n_epochs
    width = 2 if train.save_precision == "float" else 1
    states = _STATES if train.save_state_minutes else 0
    return train.network_dim * (files * _FILE_BYTES_PER_RANK * 2 * width + states * _STATE_BYTES_PER_RANK)


def _run(context: StageContext) -> Trained:
    job = prepare(context)
    return finish(context, job, make_engine(context.spec.train.engine).train(job, context.emit))


def _run_together(contexts: Sequence[StageContext]) -> Iterator[tuple[int, Trained | Exception]]:
    """Several styles in one pass; each is verified as soon as it ends."""
    jobs: dict[int, TrainJob] = {}
    for place, context in enumerate(contexts):
        try:
            jobs[place] = prepare(context)
        except Exception as error:  # noqa: BLE001, PERF203 - this style's alone; the session tells it
            yield place, error
    places = list(jobs)
    engine = make_packing_engine(contexts[0].spec.train.engine)
    for number, ending in engine.train_together([(job, contexts[place].emit) for place, job in jobs.items()]):
        place = places[number]
        if isinstance(ending, BrushsetError):
            yield place, ending
            continue
        try:
            result = finish(contexts[place], jobs[place], ending)
        except Exception as error:  # noqa: BLE001 - this style's alone; the session tells it
            yield place, error
        else:
            yield place, result


def prepare(context: StageContext) -> TrainJob:
    """The job of one style, once there is room for what it leaves and nobody trains there any more.

    Raises:
        EnvironmentProblem: too little disk, or no base.
        VerificationFailed: a held-out image lies among those that would be trained on.
    """
    spec, run, emit = context.spec, context.run, context.emit
    config = context.get(EngineConfig)
    verify_holdout(context.get(Prepared), run.images)
    if stopped := stop_orphan(process_file(run.train_log)):
        emit("warning", text=f"stopped a trainer that an earlier, killed run left behind: process {stopped[0]}")
    _require_disk(run.root, spec.train, config.epochs)
    base = resolve_base(spec.base.model, spec.base.revision, emit)
    kept = run.attempts / context.digest[:_DIGEST_CHARS]
    if context.forced:
        shutil.rmtree(kept, ignore_errors=True)
    return TrainJob(
        spec=spec,
        run=run,
        base=base,
        tokenizer_dir=tokenizer_dir(base),
        output_dir=context.workdir,
        steps=config.steps,
        batches_per_epoch=config.batches_per_epoch,
        buckets=config.buckets,
        repeats=config.repeats,
        attempts_dir=kept,
        anew=context.forced,
    )


def finish(context: StageContext, job: TrainJob, trained: Trained) -> Trained:
    """The record of what an engine left, checked, with paths of the run; only adapters stay in its folder.

    Raises:
        VerificationFailed: everything that is wrong, a line each.
    """
    try:
        verify_trained(job, trained)
    except VerificationFailed:
        _set_attempts_aside(job.attempts)
        raise
    names = [trained.weights, *(checkpoint.path for checkpoint in trained.checkpoints)]
    for name in names:
        (context.workdir / name).chmod(0o644)  # safetensors leaves 0600: a UI under another user could not read it
    run, aside = context.run, context.run.logs / "trainer"
    _set_aside(context.workdir, names, aside)
    return _with_run_paths(trained, weights=run.weights.name, aside=aside.relative_to(run.root).as_posix())


def _with_run_paths(trained: Trained, *, weights: str, aside: str) -> Trained:
    """The engine's record with paths relative to the run folder."""
    checkpoints = [item.model_copy(update={"path": f"{weights}/{item.path}"}) for item in trained.checkpoints]
    samples = [item.model_copy(update={"path": f"{aside}/{item.path}"}) for item in trained.samples]
    return trained.model_copy(
        update={
            "weights": f"{weights}/{trained.weights}",
            "checkpoints": tuple(checkpoints),
            "samples": tuple(samples),
        }
    )


def _set_attempts_aside(kept: Path) -> None:
    """A result that is wrong would be found finished, and wrong, by every later run: the next one begins anew. What was
    there stays to be looked at until a training succeeds.
    """
    aside = kept.with_name(f"{kept.name}-refused")
    shutil.rmtree(aside, ignore_errors=True)
    if kept.is_dir():
        kept.rename(aside)


def _count_findings(job: TrainJob, trained: Trained) -> list[str]:
    spec, weights = job.spec, trained.weights
    found = []
    if weights != f"{spec.name}.safetensors":
        found.append(f"{weights}: the final file is not called {spec.name}.safetensors")
    found += [f"{weights}: {finding}" for finding in _length_findings(job, trained)]
    missing = expected_checkpoints(spec.name, trained.epochs, spec.train.save_every_n_epochs, trained.best_epoch)
    missing -= {checkpoint.path for checkpoint in trained.checkpoints}
    if missing:
        found.append(f"{weights}: {len(missing)} epoch files are missing, the first is {min(missing)}")
    broken = [point.step for point in trained.losses if not math.isfinite(point.loss)]
    if broken:
        found.append(f"{weights}: the loss was NaN or infinite at {len(broken)} steps, first at {broken[0]}")
    return found


def _length_findings(job: TrainJob, trained: Trained) -> list[str]:
    """Whether as much was trained as was asked for; less only where validation says so by the style's own rule, or where
    the batch had to be divided, and then as much as that makes.
    """
    plan, train = _plan_used(job, trained), job.spec.train
    if plan is None:
        last = trained.attempts[-1]
        used = f"batch_size {last.batch_size} × gradient_accumulation_steps {last.gradient_accumulation_steps}"
        asked = train.batch_size * train.gradient_accumulation_steps
        return [f"trained with {used}, which is not the style's effective batch of {asked}"]
    choice = choose_epoch(trained.validation, train.early_stop_patience) if train.early_stop_patience else None
    epochs = (choice and choice.stop_epoch) or plan.epochs
    found = []
    if trained.steps != plan.step_after(epochs) or trained.epochs != epochs:
        found.append(
            f"trained for {trained.steps} steps in {trained.epochs} epochs, {plan.step_after(epochs)} in {epochs} were asked for"
        )
    if trained.best_epoch != (choice.best_epoch if choice else None):
        found.append(
            f"is of epoch {trained.best_epoch}, and the validation losses choose {choice and choice.best_epoch}"
        )
    if bool(trained.stopped_early) != (epochs < plan.epochs):
        found.append(f'stopped early: "{trained.stopped_early}", after {epochs} of {plan.epochs} epochs')
    return found


def _plan_used(job: TrainJob, trained: Trained) -> Plan | None:
    """The batches of the last attempt, counted anew; None where they are not the style's effective batch."""
    if not trained.attempts:
        return plan_asked(job)
    last, train = trained.attempts[-1], job.spec.train
    if train.batch_size % last.batch_size or (last.batch_size != train.batch_size and not train.retry_out_of_memory):
        return None
    plan = plan_with(job, last.batch_size, checkpointing=last.gradient_checkpointing)
    return plan if plan.gradient_accumulation_steps == last.gradient_accumulation_steps else None


def _file_findings(job: TrainJob, path: Path, sha256: str) -> list[str]:
    if not path.is_file():
        return [f"{path.name}: the engine said it was written, and it is not there"]
    if sha256_file(path) != sha256:
        return [f"{path.name}: changed after the engine had written it"]
    return find_faults(path, job.spec.train, narrow=job.base.narrow)


def _require_disk(folder: Path, train: TrainSection, epochs: int) -> None:
    """Asks for the room of all kept epochs, and of the states to go on from, before hours are spent."""
    files, wanted = 1 + epochs // train.save_every_n_epochs, wanted_bytes(train, epochs) + _SPARE_BYTES
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
    run_together=_run_together,
)
