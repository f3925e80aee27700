"""What `inference` will draw: every job, checked, before a model is loaded."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from brushset.cli.inference.adapters import Adapter, adapters_of_styles, read_adapters, require_one_base
from brushset.cli.inference.columns import Column, grid_columns, plain_columns
from brushset.cli.inference.findings import refuse
from brushset.cli.inference.prompts import Prompt, emphasised, missing_triggers, read_prompts, with_triggers
from brushset.cli.inference.request import InferenceRequest, method_for, options_for, read_composing, read_sampling
from brushset.cli.options import Options
from brushset.errors import UsageError
from brushset.files import shown
from brushset.paths import RunsDir

if TYPE_CHECKING:
    from brushset.generator import ImageJob, Sampling
    from brushset.lora.compose import Options as ComposeOptions

_MAX_SEED = 2**32


@dataclass(frozen=True)
class Plan:
    """All that is to be drawn, checked. Jobs are in the order of `cells`: (row, column) of each."""

    adapters: tuple[Adapter, ...]
    columns: tuple[Column, ...]
    rows: tuple[tuple[Prompt, int], ...]
    sampling: Sampling
    jobs: tuple[ImageJob, ...]
    cells: tuple[tuple[int, int], ...]
    notes: tuple[str, ...]


def make_plan(options: Options, request: InferenceRequest, runs: RunsDir) -> Plan:
    """Reads and checks everything that needs no model.

    Raises:
        UsageError: what is wrong with it.
    """
    _check_counts(request)
    prompts = read_prompts(request.prompts, request.prompt_files)
    adapters = _adapters(options, request, runs)
    if options.base_model is None:
        require_one_base(adapters)
    each = request.gridding.each or not request.loras
    gridding = request.gridding
    columns = (
        grid_columns(adapters, gridding.weights, each=each) if gridding.grid else plain_columns(adapters, each=each)
    )
    sampling = read_sampling(request.drawing, options, adapters)
    composing = read_composing(request.composing, columns, sampling.steps)
    seed, drawn = _seed(options, adapters)
    rows = tuple(
        (prompt, first + index)
        for prompt in prompts
        for first in [seed if prompt.seed is None else prompt.seed]
        for index in range(request.num_images)
    )
    triggers = {adapter.name: adapter.trigger for adapter in adapters} if request.triggers else {}
    jobs, cells = _jobs(rows, columns, triggers, (request, composing))
    notes = [*drawn, *_notes(prompts, columns, triggers), *_clip_skips(adapters, sampling)]
    return Plan(tuple(adapters), tuple(columns), rows, sampling, jobs, cells, tuple(notes))


def _adapters(options: Options, request: InferenceRequest, runs: RunsDir) -> list[Adapter]:
    if request.loras:
        return read_adapters(request.loras, runs)
    asked = [] if "all" in options.style else options.style
    found = adapters_of_styles(asked or runs.styles(), runs)
    if not found:
        raise UsageError(
            f"{shown(runs.root)}: nothing is trained yet; fix: orchestrate.py --style NAME, or --loras FILE:WEIGHT"
        )
    return found


def _check_counts(request: InferenceRequest) -> None:
    findings: list[str] = []
    if request.num_images < 1:
        findings.append(f"--num-images {request.num_images}: must be at least 1")
    if request.gridding.weights and not request.gridding.grid:
        findings.append("--weights: is for --grid; without it weights stand in --loras, such as anime:0.6")
    refuse(findings)


def _seed(options: Options, adapters: Sequence[Adapter]) -> tuple[int, list[str]]:
    """The first seed; -1 draws one, as in A1111, and says it."""
    if options.seed is None:
        spec = next((adapter.spec for adapter in adapters if adapter.spec), None)
        return (spec.train.seed if spec else 42), []
    if options.seed == -1:
        drawn = secrets.randbelow(_MAX_SEED)
        return drawn, [f"seed {drawn}"]
    if not 0 <= options.seed < _MAX_SEED:
        raise UsageError(f"--seed {options.seed}: from 0 to {_MAX_SEED - 1} is expected, or -1 for any")
    return options.seed, []


def _jobs(
    rows: Sequence[tuple[Prompt, int]], columns: Sequence[Column], triggers: dict[str, str],
    how: tuple[InferenceRequest, ComposeOptions],
) -> tuple[tuple[ImageJob, ...], tuple[tuple[int, int], ...]]:  # fmt: skip
    """A job for each row and column: triggers only of the adapters that are in the column's mix."""
    from brushset.generator import ImageJob

    request, composing = how
    cells = [(row, column) for row in range(len(rows)) for column in range(len(columns))]
    jobs = [
        ImageJob(
            with_triggers(rows[row][0].text, [triggers.get(name, "") for name, _ in columns[column].mix]),
            rows[row][1],
            columns[column].mix,
            rows[row][0].negative,
            method_for(columns[column], request.composing),
            options_for(columns[column], composing),
        )
        for row, column in cells
    ]
    return tuple(jobs), tuple(cells)


def _notes(prompts: Sequence[Prompt], columns: Sequence[Column], triggers: dict[str, str]) -> list[str]:
    used = list(dict.fromkeys(name for column in columns for name, _ in column.mix))
    notes = []
    for name in used:
        lacking = [each for each in prompts if missing_triggers(each.text, [triggers.get(name, "")])]
        if lacking:
            which = "the prompt" if len(prompts) == 1 else f"{len(lacking)} of {len(prompts)} prompts"
            notes.append(
                f'{name}: its trigger "{triggers[name]}" is put in front of {which}; --no-triggers leaves it out'
            )
        elif name in triggers and not triggers[name]:
            notes.append(f"{name}: its file states no trigger; prompts stay as they are")
    if found := emphasised(prompts):
        notes.append(f"{', '.join(found[:3])}: A1111's emphasis and editing are read as plain text here")
    return notes


def _clip_skips(adapters: Sequence[Adapter], sampling: Sampling) -> list[str]:
    trained = {adapter.name: adapter.spec.train.clip_skip for adapter in adapters if adapter.spec}
    other = [f"{name} {value}" for name, value in trained.items() if value != sampling.clip_skip]
    return [f"clip skip {sampling.clip_skip}; trained with another: {', '.join(other)}"] if other else []
