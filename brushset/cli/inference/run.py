"""`inference` from the request to the folder of images."""

from __future__ import annotations

import datetime as dt
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brushset.bases.resolve import resolve_base
from brushset.cli.devices import see_only
from brushset.cli.guard import listen, print_event, stdout
from brushset.cli.inference.adapters import Adapter
from brushset.cli.inference.columns import Column
from brushset.cli.inference.pictures import KEY, Folder, Making
from brushset.cli.inference.plan import Plan, make_plan
from brushset.cli.inference.request import PRECISIONS, InferenceRequest, read_precision
from brushset.cli.options import Options
from brushset.errors import VerificationFailed
from brushset.files import shown
from brushset.images import is_flat
from brushset.infotext import KEY as PARAMETERS
from brushset.lora.adapter import read_adapter
from brushset.paths import RunsDir
from brushset.protocols import Emit
from brushset.spec import DEFAULT_BASE

if TYPE_CHECKING:
    from PIL.Image import Image

    from brushset.generator import MultiLoRAGenerator
    from brushset.records import BaseFile


def infer(options: Options, request: InferenceRequest) -> None:
    """Draws every prompt with every mix, and saves PNGs with an images.json that says what each is.

    Raises:
        UsageError: all that cannot be drawn as asked for, before a model is loaded.
        VerificationFailed: images that came out as NaN or in a single colour; those are not saved, the others are.
    """
    see_only(options.gpus)
    runs = RunsDir(options.runs_dir.absolute())
    plan = make_plan(options, request, runs)
    dtype = read_precision(request.machine)
    refuse_dead(plan.adapters)
    folder = Folder(request.out or runs.root / "_inference" / dt.datetime.now().astimezone().strftime("%Y%m%d-%H%M%S"))
    events, listener = listen(options, 1)
    try:
        base = find_base(options, plan.adapters, events)
        for note in plan.notes:
            events("note", text=note)
        generator = load(base, plan.adapters, dtype, compiled=request.machine.compile, emit=events)
        making = Making(
            base,
            plan.sampling,
            {adapter.name: adapter for adapter in plan.adapters},
            generator.device,
            _dtype(generator),
        )
        images, rate = draw(generator, plan, making, folder, as_json=options.json)
        if request.gridding.grid and len(images) == len(plan.jobs):
            for file in _save_grids(plan, images, folder):
                events("note", text=f"grid {shown(file)}")
        if base.random:
            events("warning", text="the base model is made of random numbers: the images are noise, and prove nothing")
    finally:
        if listener is not None:
            listener.close()
    _refuse_blank(plan, images)
    if not options.json:
        stdout.print(f"{len(images)} images in {shown(folder.path)}, {rate:.2f} a second", markup=False)


def find_base(options: Options, adapters: Sequence[Adapter], emit: Emit) -> BaseFile:
    """The base that is asked for, else the one that the first style was trained on, else SD 1.5; says where it is another
    than a style was trained on.
    """
    first = next((adapter.spec for adapter in adapters if adapter.spec), None)
    model = options.base_model or (first.base.model if first else DEFAULT_BASE)
    revision = first.base.revision if first and options.base_model is None else None
    base = resolve_base(model, revision, emit)
    others = [adapter.name for adapter in adapters if adapter.trained_on not in ("", base.sha256)]
    if others:
        text = f"{', '.join(others)}: trained on another base model than {base.name}; the style may come out otherwise"
        emit("warning", text=text)
    return base


def refuse_dead(adapters: Sequence[Adapter]) -> None:
    """Raises VerificationFailed where an adapter is broken, or adds nothing: its images would be the base's."""
    dead = [adapter for adapter in adapters if read_adapter(adapter.located.path).dead]
    if dead:
        raise VerificationFailed.of_many(
            [
                f"{adapter.name}: {shown(adapter.located.path)} adds nothing: up or down is zero in every module; "
                "fix: leave it out, or train it again"
                for adapter in dead
            ]
        )


def load(base: BaseFile, adapters: Sequence[Adapter], dtype: Any, *, compiled: bool, emit: Emit) -> MultiLoRAGenerator:
    """The generator with all adapters in it."""
    import torch

    from brushset.generator import MultiLoRAGenerator

    if compiled and not torch.cuda.is_available():
        emit("warning", text="--compile: there is no GPU here, where it would cost minutes and gain little; left out")
        compiled = False
    generator = MultiLoRAGenerator(base, dtype=dtype, compile=compiled, emit=emit)
    for adapter in adapters:
        generator.load_lora(adapter.located.path, adapter.name)
    return generator


def draw(
    generator: MultiLoRAGenerator, plan: Plan, making: Making, folder: Folder, *, as_json: bool
) -> tuple[dict[int, Image], float]:  # fmt: skip
    """Draws and saves each image as it comes; returns those that are good, by their job, and images a second."""
    images: dict[int, Image] = {}
    rows: list[dict[str, Any]] = []
    started = time.monotonic()
    try:
        for index, image in generator.generate_jobs(plan.jobs, plan.sampling):
            if is_flat(image):
                continue
            job = plan.jobs[index]
            manifest = making.manifest(job)
            label = plan.columns[plan.cells[index][1]].label
            text = {PARAMETERS: making.parameters(job), KEY: json.dumps(manifest)}
            file = folder.save(image, index, (label, job.seed), text)
            rows.append({"file": file.name, **manifest, "mix": dict(job.mix)})
            images[index] = image
            if as_json:
                print_event("image", rows[-1])
    finally:  # what was made before an end that nobody planned is listed too
        rows.sort(key=lambda row: str(row["file"]))
        folder.list_images(rows, _settings(making))
    return images, len(images) / max(time.monotonic() - started, 1e-6)


def precision_of(dtype: str) -> str:
    """`float32` → `fp32`."""
    return next((short for short, name in PRECISIONS.items() if name == dtype), "fp32")


def _save_grids(plan: Plan, images: dict[int, Image], folder: Folder) -> list[Path]:
    from brushset.cli.inference.sheets import draw_sheets

    several = len({seed for _, seed in plan.rows}) > 1
    names = [f"{prompt.text} · seed\u00a0{seed}" if several else prompt.text for prompt, seed in plan.rows]
    table = [
        [images[row * len(plan.columns) + column] for column in range(len(plan.columns))] for row in range(len(names))
    ]
    return [folder.save_grid(sheet) for sheet in draw_sheets([column.label for column in plan.columns], names, table)]


def _refuse_blank(plan: Plan, images: dict[int, Image]) -> None:
    blank = [plan.jobs[index] for index in range(len(plan.jobs)) if index not in images]
    if blank:
        raise VerificationFailed.of_many(
            [
                f'"{job.prompt}", seed {job.seed}, {Column(tuple((n, str(w)) for n, w in job.mix)).label}: all pixels are of '
                "one colour; not saved; fix: --precision fp32, or lower weights"
                for job in blank
            ]
        )


def _settings(making: Making) -> dict[str, Any]:
    paths = {
        adapter.name: {"path": str(adapter.located.path.absolute()), "sha256": adapter.sha256}
        for adapter in making.adapters.values()
    }
    base = {"base": making.base.name, "base_path": making.base.path, "base_sha256": making.base.sha256}
    return {**base, "base_random": making.base.random, "adapters": paths}


def _dtype(generator: MultiLoRAGenerator) -> str:
    return str(generator.dtype).removeprefix("torch.")
