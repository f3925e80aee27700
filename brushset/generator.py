"""Images from a base model and any mixes of adapters, in few large batches: the base of `inference` and `evaluate`.

A mix acts as W + Σ wᵢ·ΔWᵢ on UNet and text encoder alike, or as another method of brushset.lora.compose says; the base's
weights are never written to (brushset.generation). An image depends on its own seed alone: each has a generator of its
own, on the CPU, whatever the batch and device. On a CPU images are by default made one at a time (`exact`), and so are
equal bit by bit whatever `batch_size` is: of a batch other kernels take convolutions of one row and products of fewer than
four, which moved up to 0.03 % of an image's values by one grey level, with the narrow model, at batches of 2, 5 and 10.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brushset.bases.load import load_components
from brushset.bases.resolve import resolve_base
from brushset.errors import UsageError, VerificationFailed
from brushset.generation.batches import plan_batches
from brushset.generation.mixes import Mix, Strengths, describe_strength, mix_label, read_mix
from brushset.generation.settings import Picture, Sampling, SamplingOptions
from brushset.log import silent
from brushset.lora.adapter import read_adapter
from brushset.lora.compose import Options, compose, default_method
from brushset.protocols import Emit
from brushset.records import BaseFile
from brushset.spec import DEFAULT_BASE

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from typing_extensions import Unpack

    from brushset.generation.sampler import Drawn

__all__ = [
    "GenerateOptions", "ImageJob", "Mix", "MultiLoRAGenerator", "Options", "Sampling", "SamplingOptions",
    "create_comparison_grid", "mix_label",
]  # fmt: skip


@dataclass(frozen=True)
class ImageJob:
    """One image of many. `negative_prompt` None takes the sampling's; `method` is a name of
    brushset.lora.compose.METHODS, None its default; `options` are what that method may be told.
    """

    prompt: str
    seed: int
    mix: Mix = ()
    negative_prompt: str | None = None
    method: str | None = None
    options: Options = field(default_factory=Options)


class GenerateOptions(SamplingOptions, total=False):
    """Sampling's fields, and how adapters are composed, as keywords."""

    method: str | None
    method_options: Options


class MultiLoRAGenerator:
    """A base model with any number of adapters loaded, of which each image mixes some.

    Example:
        generator = MultiLoRAGenerator("random:tiny")
        generator.load_lora("runs/anime/latest/weights/anime.safetensors", "anime")
        images = generator.generate("anistyle, a cat", [("anime", 0.8)], num_images=2, seed=1)
    """

    def __init__(
        self, base_model: str | BaseFile | None = None, *, device: str | None = None, dtype: Any = None,
        exact: bool = True, compile: bool = False, emit: Emit = silent,  # noqa: A002 - torch's word for it
    ) -> None:  # fmt: skip
        """Loads the base: a BaseFile, or what `resolve_base` takes; SD 1.5 from Hugging Face where None.

        `device` is torch's name, the first CUDA device where there is one; `dtype` a torch dtype, float16 on CUDA,
        else float32. `exact` makes images one at a time on a CPU, where that makes them equal bit by bit; without it the
        narrow model takes a third of the time at 64 pixels, SD 1.5 about half at 128. On a GPU it changes nothing.
        `compile` compiles the UNet's transformer blocks, once for each set of adapters loaded: a change of mix compiles
        nothing anew. `emit` receives progress.
        """
        import torch

        from brushset.generation.engine import Engine

        if not isinstance(base_model, BaseFile):
            base_model = resolve_base(base_model or DEFAULT_BASE, None, emit)
        self.base = base_model
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = dtype or (torch.float16 if self.device.startswith("cuda") else torch.float32)
        self._one_by_one = exact and self.device == "cpu"
        components = load_components(base_model, device=self.device, dtype=self.dtype)
        self._engine = Engine(components, one_by_one=self._one_by_one, compiled=compile, emit=emit)
        self._emit = emit
        self._loaded: dict[str, Path] = {}
        self._strengths = Strengths(self._engine.adapters)
        self._stated: set[tuple[object, ...]] = set()

    @property
    def loras(self) -> list[str]:
        """Names of the adapters loaded."""
        return sorted(self._loaded)

    def load_lora(self, path: str | Path, name: str) -> None:
        """Loads a LoRA file or folder, in Kohya's form or any of diffusers', under a name; an adapter of that name is
        replaced.

        Raises:
            UsageError: no such file, not an SD 1.5 LoRA, of other widths than the base, or a name with a dot.
            VerificationFailed: keys that name no module of SD 1.5, or values that are not finite.
        """
        if not name or "." in name:
            raise UsageError(f'adapter name "{name}": must not be empty or hold a dot')
        file = Path(path)
        self._engine.load(name, read_adapter(file), self.base.name)
        self._loaded[name] = file
        self._forget_strengths()

    def unload_lora(self, name: str) -> None:
        """Forgets an adapter and frees its memory.

        Raises:
            UsageError: none of that name is loaded.
        """
        if name not in self._loaded:
            raise UsageError(self._not_loaded(name))
        del self._loaded[name]
        self._engine.unload(name)
        self._forget_strengths()

    def generate(
        self, prompt: str, lora_configs: Mix = (), *, num_images: int = 1, seed: int | None = None,
        **options: Unpack[GenerateOptions],
    ) -> list[Image]:  # fmt: skip
        """Images of one prompt with a mix such as `[("anime", 0.6), ("watercolor", 0.4)]`; no mix is the base alone.

        A weight is a number, or text such as "0.6,text=0.3,up=0.8". Image i has seed `seed + i`; without a seed one is
        drawn. Each image's `info` holds its prompt, negative prompt, seed, mix and method.

        Raises:
            UsageError: an adapter that is not loaded, a weight that is none, or a size that cannot be sampled.
        """
        found = self.generate_comparison(
            prompt, [lora_configs], include_base=False, num_images=num_images, seed=seed, **options
        )
        return next(iter(found.values()))

    def generate_comparison(
        self, prompt: str, lora_configs_list: Sequence[Mix], *, include_base: bool = True, num_images: int = 1,
        seed: int | None = None, **options: Unpack[GenerateOptions],
    ) -> dict[str, list[Image]]:  # fmt: skip
        """The same prompt and seeds with each mix: label → images, the base first where it is included."""
        method, composing, sampling = _split(options)
        first = secrets.randbelow(2**31) if seed is None else seed
        mixes: list[Mix] = [*([()] if include_base else []), *lora_configs_list]
        labels = [mix_label(mix) for mix in mixes]
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise UsageError(f"comparison: {', '.join(twice)}: stands twice; fix: name each mix once")
        jobs = [
            ImageJob(
                prompt, first + index, mix, method=method if mix else None, options=composing if mix else Options()
            )
            for mix in mixes
            for index in range(num_images)
        ]
        made = dict(self.generate_jobs(jobs, sampling))
        return {
            label: [made[at * num_images + index] for index in range(num_images)] for at, label in enumerate(labels)
        }

    def generate_jobs(
        self, jobs: Sequence[ImageJob], sampling: Sampling | None = None
    ) -> Iterator[tuple[int, Image]]:  # fmt: skip
        """Any images in few large batches, whatever their prompts, seeds, mixes and methods: (index of the job, image),
        each as soon as it is made, in the order that batches best.

        Raises:
            UsageError: before anything is made: adapters that are not loaded, weights or methods that are none, a line
                each.
        """
        sampling = sampling or Sampling()
        pictures = self._pictures(jobs, sampling)
        self._state_strengths(jobs, pictures, sampling)
        return self._make(jobs, pictures, sampling)

    def _make(
        self, jobs: Sequence[ImageJob], pictures: Sequence[Picture], sampling: Sampling
    ) -> Iterator[tuple[int, Image]]:  # fmt: skip
        size = 1 if self._one_by_one else sampling.batch_size
        done, started = 0, time.monotonic()
        self._emit("progress", what="images", done=0, total=len(jobs))
        for batch in plan_batches(pictures, sampling.steps, size):
            drawn = self._engine.draw([pictures[index] for index in batch], sampling)
            self._refuse_nan(drawn, [jobs[index] for index in batch])
            images = [
                self._image(each, jobs[index], pictures[index]) for index, each in zip(batch, drawn.pixels, strict=True)
            ]
            done += len(batch)
            rate = done / max(time.monotonic() - started, 1e-6)
            left = (len(jobs) - done) / rate
            self._emit("progress", what="images", done=done, total=len(jobs), per_s=rate, eta_s=left)
            yield from zip(batch, images, strict=True)

    def _pictures(self, jobs: Sequence[ImageJob], sampling: Sampling) -> list[Picture]:
        """The jobs with their courses.

        Raises:
            UsageError: all that is wrong with any of them, each finding once.
        """
        pictures: list[Picture] = []
        findings: dict[str, None] = {}
        for job in jobs:
            findings |= dict.fromkeys(self._not_loaded(name) for name, _ in job.mix if name not in self._loaded)
            negative = sampling.negative_prompt if job.negative_prompt is None else job.negative_prompt
            try:
                mix, options = read_mix(job.mix, job.options)
                course = compose(job.method, mix, options)
                course(0, sampling.steps)
            except UsageError as error:
                findings |= dict.fromkeys(str(error).splitlines())
            else:
                pictures.append(Picture(job.prompt, negative, job.seed, course))
        if findings:
            raise UsageError.of_many(list(findings))
        return pictures

    def _not_loaded(self, name: str) -> str:
        known = ", ".join(self.loras) or "none"
        return f'adapter "{name}" is not loaded; loaded: {known}; fix: load_lora(path, "{name}")'

    def _forget_strengths(self) -> None:
        self._strengths.forget()
        self._stated.clear()

    def _state_strengths(self, jobs: Sequence[ImageJob], pictures: Sequence[Picture], sampling: Sampling) -> None:
        """Says of each mix of several adapters how strong it is, once."""
        for job, picture in zip(jobs, pictures, strict=True):
            if len(job.mix) < 2:
                continue
            key = (mix_label(job.mix), job.method, repr(job.options), sampling.steps)
            if key in self._stated:
                continue
            self._stated.add(key)
            mix, options = read_mix(job.mix, job.options)
            steady = (job.method or default_method(options)) == "weighted" and not options.normalised
            relative = self._strengths.relative(mix) if steady else None
            label = key[0] + (f" ({job.method})" if job.method else "")
            self._emit("note", text=describe_strength(label, picture.course, sampling.steps, relative))

    def _refuse_nan(self, drawn: Drawn, jobs: Sequence[ImageJob]) -> None:
        for job, finite in zip(jobs, drawn.finite.tolist(), strict=True):
            if not finite:
                raise VerificationFailed(
                    f'{self.base.path}: an image came out as NaN in {self.dtype}: "{job.prompt}", seed {job.seed}, '
                    f"{mix_label(job.mix)}; fix: lower weights, or --precision fp32, which is dtype=torch.float32"
                )

    def _image(self, pixels: torch.Tensor, job: ImageJob, picture: Picture) -> Image:
        """From uint8 [H, W, 3]."""
        from PIL import Image

        image = Image.fromarray(pixels.numpy())
        told = {"prompt": job.prompt, "negative_prompt": picture.negative_prompt, "seed": job.seed}
        image.info.update({**told, "mix": mix_label(job.mix), "method": job.method or ""})
        return image


def create_comparison_grid(
    comparison: Mapping[str, Image | Sequence[Image]], save_path: str | Path | None = None, *,
    row_labels: Sequence[str] = (), title: str = "",
) -> Image:  # fmt: skip
    """One picture: a column for each entry with its label on top, its images below one another.

    Labels are wrapped to the column's width and never cut. `row_labels` stand at the left, `title` above all.

    Raises:
        UsageError: nothing to show.
    """
    from brushset.grid import draw_grid

    columns = {label: [*images] if isinstance(images, Sequence) else [images] for label, images in comparison.items()}
    if not any(columns.values()):
        raise UsageError("comparison grid: there is no image to show")
    grid = draw_grid(columns, row_labels=row_labels, title=title)
    if save_path is not None:
        Path(save_path).parent.mkdir(parents=True, exist_ok=True)
        grid.save(save_path)
    return grid


def _split(options: GenerateOptions) -> tuple[str | None, Options, Sampling]:
    rest: dict[str, Any] = dict(options)
    method, composing = rest.pop("method", None), rest.pop("method_options", Options())
    return method, composing, Sampling(**rest)
