"""Images of many prompts with many mixes of two LoRAs: adapters switched one mix at a time, against one batch for all.

    python bench/generate.py                    # narrow model on any CPU: about a minute
    python bench/generate.py --compile          # on a GPU: SD 1.5's widths, 512 px, 25 steps, batch 16, then compiled

Ways: `switched` is the usual one, diffusers' pipeline with PEFT's set_adapters before each mix, the mix's prompts as a
batch; `mixed` asks for all of them at once, weights by row (brushset.generation); `one adapter` has the same mix in every
image, `composite` two views an image. Every stage runs once to warm up, then for at most `--box` seconds; a JSON line
follows each at once, the table comes last. Weights are random numbers: figures are of speed and memory, of nothing else.
`grey levels` is how far pixels are from the switched way's: the work is the same. Operations are of an image and step,
prompts and decoding in them. Memory of a CPU is the whole process's, torch and both models in it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from rich.console import Console
from rich.table import Table

from bench.lines import tell
from bench.operations import Operations
from bench.watching import peak_mb, unet_calls
from brushset.bases.configs import SD15, TINY
from brushset.bases.load import load_pipeline, quiet_diffusers
from brushset.bases.resolve import resolve_base
from brushset.generator import ImageJob, MultiLoRAGenerator, Sampling
from brushset.log import silent
from brushset.lora.adapter import read_adapter
from brushset.lora.forms import to_diffusers
from brushset.lora.keys import expected_shapes
from brushset.records import BaseFile

WEIGHTS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
PROMPTS = ("a portrait of a girl", "a landscape with a lake", "a cat on a windowsill", "a street in an old town")
COUNTED_STEPS = 2


@dataclass(frozen=True)
class Work:
    """What every way makes. `mixes` × `prompts` images, an image's seed its place."""

    base: BaseFile
    loras: Mapping[str, Path]
    device: str
    dtype: torch.dtype
    sampling: Sampling
    mixes: int
    prompts: int
    box_s: float

    def jobs(self, mix: Callable[[float], Sequence[tuple[str, float]]], method: str | None = None) -> list[ImageJob]:
        """The matrix, mix by mix."""
        return [
            ImageJob(
                PROMPTS[row % len(PROMPTS)],
                column * self.prompts + row,
                mix(WEIGHTS[column % len(WEIGHTS)]),
                method=method,
            )
            for column in range(self.mixes)
            for row in range(self.prompts)
        ]


@dataclass(frozen=True)
class Way:
    """How jobs become images, and the UNet that is asked. Compiled code starts no operations that could be counted."""

    draw: Callable[[Sequence[ImageJob], Sampling], Iterator[tuple[int, Any]]]
    unet: Any
    compiled: bool = False


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measures all ways; prints a line each and the table."""
    asked = _arguments(argv)
    if asked.device == "cpu":
        torch.set_num_threads(asked.threads)
    with tempfile.TemporaryDirectory() as folder:
        work = _work(asked, Path(folder))
        rows: list[dict[str, Any]] = []
        pixels: dict[int, Any] = {}
        for name, stage in _stages(work, compiled=asked.compile):
            if asked.only and name not in asked.only:
                continue
            rows.append({"way": name, **stage(pixels)})
            tell(rows[-1], asked.out)
    _print_table(asked, work, rows)
    return rows


def _stages(work: Work, *, compiled: bool) -> Iterator[tuple[str, Callable[[dict[int, Any]], dict[str, Any]]]]:
    pair = work.jobs(lambda weight: [("one", weight), ("other", 1 - weight)])
    alone = work.jobs(lambda weight: [("one", weight)])
    composite = work.jobs(lambda weight: [("one", weight), ("other", 1 - weight)], "composite")

    def switched(pixels: dict[int, Any]) -> dict[str, Any]:
        pipeline, unet = _pipeline(work)
        way = Way(lambda jobs, sampling: _draw_switched(pipeline, jobs, sampling), unet)
        return _measure(way, work, pair, pixels)

    def ours(jobs: list[ImageJob], *, compile_unet: bool, compared: bool) -> Callable[[dict[int, Any]], dict[str, Any]]:
        def stage(pixels: dict[int, Any]) -> dict[str, Any]:
            generator = MultiLoRAGenerator(
                work.base, device=work.device, dtype=work.dtype, exact=False, compile=compile_unet
            )
            for name, file in work.loras.items():
                generator.load_lora(file, name)
            unet = generator._engine._sampler._models.unet  # noqa: SLF001 - its calls are counted here alone
            return _measure(Way(generator.generate_jobs, unet, compile_unet), work, jobs, pixels if compared else None)

        return stage

    yield "switched (PEFT)", switched
    for compile_unet in (False, True) if compiled else (False,):
        said = ", compiled" if compile_unet else ""
        yield f"mixed{said}", ours(pair, compile_unet=compile_unet, compared=True)
        yield f"one adapter{said}", ours(alone, compile_unet=compile_unet, compared=False)
        yield f"composite{said}", ours(composite, compile_unet=compile_unet, compared=False)


def _measure(way: Way, work: Work, jobs: list[ImageJob], pixels: dict[int, Any] | None) -> dict[str, Any]:
    """One way: warmed up by a batch, counted at a few steps, timed on the whole or until its box is full."""
    begun = time.perf_counter()
    for _ in way.draw(jobs[: work.sampling.batch_size], work.sampling):
        pass
    row: dict[str, Any] = {"first_s": round(time.perf_counter() - begun, 2), **_counted(way, work, jobs)}
    with peak_mb(work.device) as peak:
        row |= _timed(way, work, jobs, pixels)
    return row | {"peak_mb": round(peak[0])}


def _counted(way: Way, work: Work, jobs: list[ImageJob]) -> dict[str, Any]:
    few = dataclasses.replace(work.sampling, steps=COUNTED_STEPS)
    with contextlib.nullcontext() if way.compiled else Operations() as counted, unet_calls(way.unet) as calls:
        done = sum(1 for _ in way.draw(jobs, few))
    operations = None if counted is None else round(counted.total / done / COUNTED_STEPS)
    return {"unet_calls_a_step": round(calls[0] / COUNTED_STEPS, 1), "operations_an_image_and_step": operations}


def _timed(way: Way, work: Work, jobs: list[ImageJob], pixels: dict[int, Any] | None) -> dict[str, Any]:
    import numpy as np

    apart: list[float] = []
    started, processor = time.perf_counter(), time.process_time()
    made = 0
    for index, image in way.draw(jobs, work.sampling):
        made += 1
        if pixels is not None:
            values = np.asarray(image, dtype=np.int16)
            apart.append(float(np.abs(values - pixels.setdefault(index, values)).mean()))
        if time.perf_counter() - started > work.box_s:
            break
    if work.device != "cpu":
        torch.cuda.synchronize()
    spent, processor = time.perf_counter() - started, time.process_time() - processor
    return {
        "images": made,
        "images_per_s": round(made / spent, 3),
        "cpu_s_an_image": round(processor / made, 3),
        "grey_levels": round(max(apart), 3) if apart else None,
    }


def _pipeline(work: Work) -> tuple[Any, Any]:
    pipeline = load_pipeline(work.base, device=work.device, dtype=work.dtype)
    with quiet_diffusers(), warnings.catch_warnings():  # peft warns of several adapters, which is what this is about
        warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
        for name, file in work.loras.items():
            weights = {key: value.to(work.dtype) for key, value in to_diffusers(read_adapter(file).factors).items()}
            pipeline.load_lora_weights(weights, adapter_name=name)
    return pipeline, pipeline.unet


def _draw_switched(pipeline: Any, jobs: Sequence[ImageJob], sampling: Sampling) -> Iterator[tuple[int, Any]]:
    """Each mix by itself, its prompts in batches."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index, job in enumerate(jobs):
        groups.setdefault(tuple(job.mix), []).append(index)
    for mix, members in groups.items():
        pipeline.set_adapters([name for name, _ in mix], adapter_weights=[weight for _, weight in mix])
        for at in range(0, len(members), sampling.batch_size):
            batch = members[at : at + sampling.batch_size]
            images = pipeline(
                prompt=[jobs[index].prompt for index in batch],
                negative_prompt=[sampling.negative_prompt] * len(batch),
                num_inference_steps=sampling.steps,
                guidance_scale=sampling.guidance,
                width=sampling.width,
                height=sampling.height,
                generator=[torch.Generator("cpu").manual_seed(jobs[index].seed) for index in batch],
            ).images
            yield from zip(batch, images, strict=True)


def _work(asked: argparse.Namespace, folder: Path) -> Work:
    from safetensors.torch import save_file

    base = resolve_base(asked.base, None, silent)
    loras = {}
    for seed, name in enumerate(("one", "other")):
        numbers = torch.Generator().manual_seed(seed)
        shapes = expected_shapes(asked.rank, text_encoder=True, architecture=TINY if base.narrow else SD15)
        state = {
            key: torch.tensor(float(asked.rank))
            if key.endswith(".alpha")
            else 0.02 * torch.randn(shape, generator=numbers)
            for key, shape in shapes.items()
        }
        loras[name] = folder / f"{name}.safetensors"
        save_file(state, loras[name])
    sampling = Sampling(steps=asked.steps, width=asked.px, height=asked.px, batch_size=asked.batch)
    dtype = torch.float32 if asked.device == "cpu" else torch.float16
    return Work(base, loras, asked.device, dtype, sampling, asked.mixes, asked.prompts, asked.box)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if gpu else "cpu")
    parser.add_argument("--base", default="random:sd15" if gpu else "random:tiny")
    parser.add_argument("--px", type=int, default=512 if gpu else 64)
    parser.add_argument("--steps", type=int, default=25 if gpu else 4)
    parser.add_argument("--batch", type=int, default=16 if gpu else 8)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--mixes", type=int, default=16 if gpu else 6, help="columns: weights of the pair")
    parser.add_argument("--prompts", type=int, default=4, help="rows")
    parser.add_argument("--box", type=float, default=60.0, help="seconds that a stage is timed for, at most")
    parser.add_argument("--threads", type=int, default=1, help="of a CPU")
    parser.add_argument("--compile", action="store_true", help="then all of ours compiled")
    parser.add_argument("--only", nargs="+", metavar="WAY", help="these alone, by the names in the table")
    parser.add_argument("--out", type=Path, help="file that each stage's JSON line is added to")
    return parser.parse_args(argv)


def _print_table(asked: argparse.Namespace, work: Work, rows: Sequence[Mapping[str, Any]]) -> None:
    title = (
        f"{asked.mixes} mixes × {asked.prompts} prompts, {asked.base}, {asked.px} px, {asked.steps} steps, "
        f"batch {asked.batch}, {asked.device}, {work.dtype}"
    )
    table = Table(
        "way",
        "images/s",
        "×",
        "CPU s/image",
        "UNet calls/step",
        "operations",
        "peak MB",
        "first s",
        "grey levels",
        title=title,
    )
    reference = rows[0]["images_per_s"]
    for row in rows:
        table.add_row(
            row["way"], f"{row['images_per_s']:.2f}", f"{row['images_per_s'] / reference:.2f}",
            f"{row['cpu_s_an_image']:.3f}", f"{row['unet_calls_a_step']:g}", str(row["operations_an_image_and_step"] or ""),
            str(row["peak_mb"]), f"{row['first_s']:.1f}", "" if row["grey_levels"] is None else f"{row['grey_levels']:.2f}",
        )  # fmt: skip
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
