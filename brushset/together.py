"""Several styles' runs in one process: each as if alone, but for the stages that can be done for all of them at once.

Up to such a stage the styles go one after the other, then it is done once for all that it has to work for, then they go on
one after the other. A style that fails ends alone, at once and with its lock free; one whose share of the common stage is
done is on record at that moment, whatever becomes of the others.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeVar

from brushset.errors import BrushsetError, Interrupted
from brushset.log import EventLog
from brushset.paths import RunsDir
from brushset.pipeline import Pipeline, Stage, StageContext
from brushset.records import Record
from brushset.session import Ask, Session, open_session

R = TypeVar("R", bound=Record)
OnFailure = Callable[[str, BrushsetError], None]


def run_styles_together(
    asks: Sequence[Ask],
    stages: Sequence[Stage[Any]],
    runs: RunsDir,
    events: Mapping[str, EventLog],
    on_failure: OnFailure,
) -> dict[str, BrushsetError]:
    """Brings the runs of several styles up to date, all of them until and forced alike; returns the failures, each of
    which `on_failure` has heard when it happened.

    Raises:
        Interrupted: a signal; the runs that were not done say so.
    """
    with ExitStack() as stack:
        company = _Company(stack, on_failure)
        for ask in sorted(asks, key=lambda ask: ask.key):  # one order of locks: two commands never halve the styles
            company.admit(ask, stages, runs, events[ask.key])
        order = [ask.key for ask in asks]
        try:
            company.work(order, force=asks[0].force)
        except Interrupted as error:
            for session in company.sessions.values():
                session.interrupt(error)
            raise
    return {style: company.failures[style] for style in order if style in company.failures}


def perform_together(
    stage: Stage[Any], pipelines: Mapping[str, Pipeline], *, forced: bool = False
) -> Iterator[tuple[str, bool | Exception]]:
    """Brings one stage up to date in several pipelines, by style: those for which it has to work do it together. Yields
    each style as it ends, with whether the stage did work, or with its failure, which touches no other.
    """
    assert stage.run_together is not None
    opened: dict[str, StageContext] = {}
    try:
        for style, pipeline in pipelines.items():
            try:
                settled = pipeline.settle(stage, forced=forced)
            except Exception as error:  # noqa: BLE001 - it is this style's alone, and whoever asked tells it
                yield style, error
                continue
            if isinstance(settled, bool):
                yield style, settled
            else:
                opened[style] = settled
        styles = list(opened)
        for place, result in stage.run_together(list(opened.values())) if opened else ():
            yield styles[place], _close(stage, pipelines[styles[place]], opened[styles[place]], result)
    finally:
        for context in opened.values():
            shutil.rmtree(context.workdir, ignore_errors=True)


def _close(stage: Stage[R], pipeline: Pipeline, context: StageContext, result: R | Exception) -> bool | Exception:
    """Publishes and records one result; returns what `perform_together` yields of it."""
    if isinstance(result, Exception):
        return result
    try:
        pipeline.close(stage, context, result)
    except Exception as error:  # noqa: BLE001 - see perform_together
        return error
    return True


class _Company:
    """The styles that are still on their way, and the failures of the others."""

    def __init__(self, stack: ExitStack, on_failure: OnFailure) -> None:
        self._stack, self._on_failure = stack, on_failure
        self._own: dict[str, ExitStack] = {}
        self.sessions: dict[str, Session] = {}
        self.failures: dict[str, BrushsetError] = {}

    def admit(self, ask: Ask, stages: Sequence[Stage[Any]], runs: RunsDir, events: EventLog) -> None:
        """Takes a style in, unless its run cannot be opened."""
        style = ask.key
        own = self._stack.enter_context(ExitStack())
        try:
            self.sessions[style] = own.enter_context(open_session(ask, stages, runs, events))
        except BrushsetError as error:
            self._fail(style, error)
        else:
            self._own[style] = own

    def work(self, order: Sequence[str], *, force: str | None) -> None:
        """Takes all styles through their stages, in this order."""
        for style in self._present(order):
            self._attempt(style, self.sessions[style].begin)
        todo = next(iter(self.sessions.values())).todo if self.sessions else ()
        for joint, stretch in itertools.groupby(todo, key=lambda stage: stage.run_together is not None):
            some = list(stretch)
            if joint:
                self._perform(some, self._present(order), force=force)
                continue
            for style in self._present(order):
                self._attempt(style, partial(self.sessions[style].execute, some, force=force))
        for style in self._present(order):
            self._attempt(style, self.sessions[style].end)
            self._leave(style)

    def _perform(self, stages: Sequence[Stage[Any]], styles: Sequence[str], *, force: str | None) -> None:
        """Does joint stages for all that are there."""
        for stage in stages:
            pending = {style: self.sessions[style].pipeline for style in styles if style in self.sessions}
            endings = perform_together(stage, dict(pending), forced=stage.name == force)
            try:
                for style, ending in endings:
                    del pending[style]
                    if isinstance(ending, Exception):
                        self._fail(style, ending)
                    else:
                        self.sessions[style].worked += ending
                if pending:
                    raise RuntimeError(f"{stage.name} did not tell what came of {', '.join(pending)}")  # noqa: TRY301
            except Exception as error:  # noqa: BLE001 - a bug in what they share is the failure of each
                for style in pending:
                    self._fail(style, error)

    def _present(self, order: Sequence[str]) -> list[str]:
        return [style for style in order if style in self.sessions]

    def _attempt(self, style: str, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - told, and written down as this style's failure
            self._fail(style, error)

    def _fail(self, style: str, error: Exception) -> None:
        session = self.sessions.get(style)
        told = session.fail(error) if session else error
        assert isinstance(told, BrushsetError)
        if told is not error:
            told.__cause__ = error
        self._leave(style)
        self.failures[style] = told
        self._on_failure(style, told)

    def _leave(self, style: str) -> None:
        """Frees the style's lock; its run is as it is."""
        self.sessions.pop(style, None)
        if own := self._own.pop(style, None):
            own.close()
