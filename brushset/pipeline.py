"""A stage is a function from typed inputs to a typed record; this runs stages in order and skips what is unchanged.

A stage's digest is the hash of its name and version, the parts of the spec it reads, what it takes from outside the
run (image hashes, the base model's hash) and the digests of the records it builds on. It is skipped only where its
digest matches and its output files still hash right; where another run of the style holds such a result, that is
taken over. Outputs are written to a temporary neighbour and renamed, the record comes last: a crash leaves no record,
or a true one. This module knows what a Stage is, and no stage.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from brushset.errors import UsageError, VerificationFailed
from brushset.files import (
    digest_files,
    link_or_copy,
    list_files,
    merge_folder,
    publish_folder,
    sha256_json,
    write_json,
)
from brushset.paths import RunPaths
from brushset.protocols import Emit
from brushset.records import Record
from brushset.spec import SUPERVISION, StyleSpec
from brushset.stage_records import StageRecord, load_record, outputs_hold
from brushset.stopping import raise_if_asked

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class StageContext:
    """What a stage's function gets. `digest` names its inputs: what is kept under it between attempts still fits;
    `forced` says that the user wants it made anew.
    """

    spec: StyleSpec
    run: RunPaths
    workdir: Path
    emit: Emit
    records: dict[type[Record], Record]
    previous: dict[str, Any] | None
    digest: str = ""
    forced: bool = False
    started_at: float = 0.0

    def get(self, kind: type[R]) -> R:
        """The record of an earlier stage, by its type."""
        record = self.records[kind]
        assert isinstance(record, kind)
        return record


@dataclass(frozen=True)
class Stage(Generic[R]):
    """One step of the pipeline.

    `keeps_edits`: users may edit the outputs. `passes_on`: files with this suffix belong to a later stage; this one
    carries them through when it replaces its folder, and they are not in its record. `run_together` does the stage for
    several styles at once, and yields the place and the result of each as it ends, its error where it failed.
    """

    name: str
    record: type[R]
    run: Callable[[StageContext], R]
    reads: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    output: str = ""
    publish: Literal["replace", "merge"] = "replace"
    outside: Callable[[StyleSpec, RunPaths], object] = field(default=lambda _spec, _run: None)
    keeps_edits: bool = False
    passes_on: str | None = None
    run_together: Callable[[Sequence[StageContext]], Iterator[tuple[int, R | Exception]]] | None = None
    version: int = 1


@dataclass
class Pipeline:
    """Runs stages of one style in one run folder. `donors` are the style's other runs, newest first; `may_publish` raises
    where the folder has become another process's.
    """

    spec: StyleSpec
    run: RunPaths
    emit: Emit
    donors: Sequence[RunPaths] = ()
    on_change: Callable[[], None] = lambda: None
    may_publish: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.done: dict[str, StageRecord] = {}
        self._records: dict[type[Record], Record] = {}

    def execute(self, stages: Sequence[Stage[Any]], *, until: str | None = None, force: str | None = None) -> int:
        """Runs the stages in order up to and including `until`; returns how many did work.

        `force` redoes that stage; later ones follow where its result differs.
        """
        require_stages([stage.name for stage in stages], until, force)
        worked = 0
        for stage in stages:
            worked += self._bring_up_to_date(stage, forced=stage.name == force)
            if stage.name == until:
                break
        return worked

    def stand_on(self, stages: Sequence[Stage[Any]], *, before: str, source: RunPaths) -> None:
        """Takes every stage before `before` as it stands in `source`, without asking whether its inputs changed since:
        for commands that work on a finished run.

        Raises:
            UsageError: a stage has not been done there.
            VerificationFailed: an output is gone, or is not what was recorded.
        """
        for stage in stages:
            if stage.name == before:
                return
            record = load_record(source, stage.name)
            if record is None:
                raise UsageError(
                    f"{source.root}: {stage.name} has not been done; fix: orchestrate.py --style {self.spec.name}"
                )
            if not stage.keeps_edits and not outputs_hold(source, record):
                raise VerificationFailed(
                    f"{source.root}: an output of {stage.name} is gone or changed; fix: --force {stage.name}"
                )
            if source.root != self.run.root:
                record = self._copy_result(stage, record, source)
            self._remember(stage, record)

    def _bring_up_to_date(self, stage: Stage[Any], *, forced: bool) -> bool:
        context = self.settle(stage, forced=forced)
        if isinstance(context, bool):
            return context
        try:
            self.close(stage, context, stage.run(context))
        finally:
            shutil.rmtree(context.workdir, ignore_errors=True)
        return True

    def settle(self, stage: Stage[Any], *, forced: bool) -> bool | StageContext:
        """Where what is here serves, or what another run has: whether it was taken over; else what to do the work in,
        which is then for `close`.
        """
        raise_if_asked()
        digest = self._digest(stage)
        kept = load_record(self.run, stage.name)
        if not forced:
            if kept and kept.digest == digest and outputs_hold(self.run, kept):
                self._remember(stage, kept)
                self.emit("stage_skip", stage=stage.name, reason="unchanged")
                return False
            if taken := self._take_over(stage, digest):
                self._remember(stage, taken)
                self.emit("stage_skip", stage=stage.name, reason=f"taken from run {taken.taken_from}")
                self.on_change()
                return True
            kept = kept or load_record(self.run, stage.name)
        self.emit("stage_start", stage=stage.name)
        workdir = self.run.workdir(stage.name)
        shutil.rmtree(workdir, ignore_errors=True)
        workdir.mkdir(parents=True)
        return StageContext(
            self.spec, self.run, workdir, self.emit, self._records, kept.data if kept else None,
            digest=digest, forced=forced, started_at=time.time(),
        )  # fmt: skip

    def close(self, stage: Stage[R], context: StageContext, result: R) -> None:
        """Publishes what was made in `context`, and then records it."""
        made = [path for path in list_files(context.workdir) if path.suffix != stage.passes_on]
        digests = digest_files(made, context.workdir)
        outputs = {f"{stage.output}/{path}".lstrip("/"): sha for path, sha in digests.items()}
        self.may_publish()
        self.run.record(stage.name).unlink(missing_ok=True)
        final = self.run.root / stage.output
        (merge_folder if stage.publish == "merge" else publish_folder)(context.workdir, final)
        record = StageRecord(
            stage=stage.name, version=stage.version, digest=context.digest, started_at=context.started_at,
            ended_at=time.time(), outputs=outputs, data=result.model_dump(mode="json"),
        )  # fmt: skip
        write_json(self.run.record(stage.name), record.model_dump(mode="json"))
        self._remember(stage, record)
        self.emit("stage_end", stage=stage.name, seconds=round(record.ended_at - context.started_at, 2))
        self.on_change()

    def _digest(self, stage: Stage[Any]) -> str:
        return sha256_json(
            {
                "stage": [stage.name, stage.version],
                "spec": read_settings(stage, self.spec),
                "outside": stage.outside(self.spec, self.run),
                "needs": {name: self.done[name].content_digest for name in stage.needs},
            }
        )

    def _take_over(self, stage: Stage[Any], digest: str) -> StageRecord | None:
        """Copies a result of the same digest from another run. Captions that a user edited there come along, and
        are then for the stage to look at: it runs again with them in place.
        """
        for donor in self.donors:
            record = load_record(donor, stage.name)
            if record is None or record.digest != digest:
                continue
            holds = outputs_hold(donor, record)
            if not holds and not stage.keeps_edits:
                continue
            if stage.keeps_edits and any((self.run.root / path).exists() for path in record.outputs):
                continue  # what the user edited here must not be copied over
            taken = self._copy_result(stage, record, donor)
            return taken if holds else None
        return None

    def _copy_result(self, stage: Stage[Any], record: StageRecord, donor: RunPaths) -> StageRecord:
        self.may_publish()
        for path in record.outputs:
            self._copy(stage, donor.root / path, self.run.root / path)
        taken = record.model_copy(update={"taken_from": donor.run_id})
        write_json(self.run.record(stage.name), taken.model_dump(mode="json"))
        return taken

    def _copy(self, stage: Stage[Any], source: Path, target: Path) -> None:
        if not source.is_file():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        if stage.keeps_edits:
            shutil.copy2(source, target)
        else:
            link_or_copy(source, target)

    def _remember(self, stage: Stage[Any], record: StageRecord) -> None:
        self.done[stage.name] = record
        self._records[stage.record] = stage.record.model_validate(record.data)


def require_stages(known: Sequence[str], *asked: str | None) -> None:
    """Raises UsageError where one of those asked for is none of `known`; None asks for none."""
    for name in asked:
        if name is not None and name not in known:
            raise UsageError(f'"{name}" is no stage; stages: {", ".join(known)}')


def read_settings(stage: Stage[Any], spec: StyleSpec) -> dict[str, object]:
    """What a stage reads of a spec: with equal settings, images and results to build on it does the same."""
    return {key: _dig(spec, key) for key in stage.reads}


def _dig(spec: StyleSpec, key: str) -> object:
    value: Any = spec
    for part in key.split("."):
        value = getattr(value, part)
    return value.model_dump(mode="json", exclude=set(SUPERVISION)) if hasattr(value, "model_dump") else value
