"""Images from a base model and any mix of adapters: the base of `inference` and `evaluate`.

A mix acts as W + Σ weightᵢ · ΔWᵢ, on UNet and text encoder alike. diffusers has three traps here, all met: a second
`load_lora_weights` leaves only the newest adapter active, so the mix is set before every batch; alpha of a Kohya file
is folded into the weights by us; a weight given per part leaves the text encoder at 1, so one number is given for both.
An image depends on its own seed alone: each has a generator of its own, on the CPU, whatever the batch and device. On
the CPU images are sampled one by one, so they are equal bit by bit whatever `batch_size` is: a batch would round
otherwise, moving pixels by one grey level, to save a third of the time on the narrow model and little on the full one.
"""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from brushset.bases.load import load_pipeline, quiet_diffusers
from brushset.bases.resolve import resolve_base
from brushset.errors import UsageError, VerificationFailed
from brushset.log import silent
from brushset.lora.adapter import read_adapter
from brushset.lora.forms import to_diffusers
from brushset.protocols import Emit
from brushset.records import BaseFile
from brushset.spec import DEFAULT_BASE, EvaluateSection

if TYPE_CHECKING:
    from PIL.Image import Image
    from typing_extensions import Unpack

Mix = Sequence[tuple[str, float]]
_DEFAULTS = EvaluateSection()


@dataclass(frozen=True)
class Sampling:
    """How an image is sampled; the defaults are the evaluation grid's. Width and height in pixels, multiples of 8;
    `clip_skip` as in training: 1 takes the text encoder's last layer, 2 the one before.
    """

    negative_prompt: str = ""
    steps: int = _DEFAULTS.steps
    guidance: float = _DEFAULTS.guidance
    width: int = _DEFAULTS.width
    height: int = _DEFAULTS.height
    batch_size: int = _DEFAULTS.batch_size
    clip_skip: int = 1

    def __post_init__(self) -> None:
        """Refuses what diffusers would refuse late or not at all."""
        for side in ("width", "height"):
            value = getattr(self, side)
            if value < 64 or value % 8:
                raise UsageError(f"{side} = {value}: must be a multiple of 8, at least 64")
        for name in ("steps", "batch_size", "clip_skip"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} = {getattr(self, name)}: must be at least 1")


class SamplingOptions(TypedDict, total=False):
    """Sampling's fields, as keywords."""

    negative_prompt: str
    steps: int
    guidance: float
    width: int
    height: int
    batch_size: int
    clip_skip: int


class MultiLoRAGenerator:
    """A base model with any number of adapters loaded, of which each call mixes some.

    Example:
        generator = MultiLoRAGenerator("random:tiny")
        generator.load_lora("runs/anime/latest/weights/anime.safetensors", "anime")
        images = generator.generate("a cat, anistyle", [("anime", 0.8)], num_images=2, seed=1)
    """

    def __init__(
        self, base_model: str | BaseFile | None = None, *, device: str | None = None, dtype: Any = None,
        emit: Emit = silent,
    ) -> None:  # fmt: skip
        """Loads the base: a BaseFile, or what `resolve_base` takes; SD 1.5 from Hugging Face where None.

        `device` is torch's name, the first CUDA device where there is one; `dtype` a torch dtype, float16 on CUDA,
        else float32. `emit` receives progress.
        """
        import torch

        if not isinstance(base_model, BaseFile):
            base_model = resolve_base(base_model or DEFAULT_BASE, None, emit)
        self.base = base_model
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = dtype or (torch.float16 if self.device.startswith("cuda") else torch.float32)
        self.pipeline = load_pipeline(base_model, device=self.device, dtype=self.dtype)
        self._emit = emit
        self._loaded: dict[str, Path] = {}

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
        # In the base's dtype: PEFT would compute a bf16 file's part in bf16 on a base of float32.
        weights = {key: weight.to(self.dtype) for key, weight in to_diffusers(read_adapter(file).factors).items()}
        self._check_fits(weights, file)
        if name in self._loaded:
            self.pipeline.delete_adapters(name)
            del self._loaded[name]
        with quiet_diffusers(), warnings.catch_warnings():  # peft warns of several adapters, which is what we are about
            warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
            self.pipeline.load_lora_weights(weights, adapter_name=name)
        self._loaded[name] = file

    def generate(
        self, prompt: str, lora_configs: Mix = (), *, num_images: int = 1, seed: int | None = None,
        **options: Unpack[SamplingOptions],
    ) -> list[Image]:  # fmt: skip
        """Images of one prompt with a mix such as `[("anime", 0.6), ("watercolor", 0.4)]`; no mix is the base alone.

        Image i has seed `seed + i`; without a seed one is drawn. Each image's `info` holds its prompt, seed and mix.

        Raises:
            UsageError: an adapter that is not loaded, or a size that cannot be sampled.
        """
        first = secrets.randbelow(2**31) if seed is None else seed
        wanted = [(prompt, first + index) for index in range(num_images)]
        return self.generate_each(wanted, lora_configs, Sampling(**options))

    def generate_each(
        self, wanted: Sequence[tuple[str, int]], lora_configs: Mix = (), sampling: Sampling | None = None
    ) -> list[Image]:
        """One image for each (prompt, seed), in order; on CUDA `sampling.batch_size` at a time."""
        sampling = sampling or Sampling()
        self._activate(lora_configs)
        size = 1 if self.device == "cpu" else sampling.batch_size
        images: list[Image] = []
        for start in range(0, len(wanted), size):
            self._emit("progress", what=mix_label(lora_configs), done=start, total=len(wanted))
            batch = wanted[start : start + size]
            for image, (prompt, seed) in zip(self._sample(batch, sampling), batch, strict=True):
                image.info.update({"prompt": prompt, "seed": seed, "mix": mix_label(lora_configs)})
                images.append(image)
        self._emit("progress", what=mix_label(lora_configs), done=len(wanted), total=len(wanted))
        return images

    def generate_comparison(
        self, prompt: str, lora_configs_list: Sequence[Mix], *, include_base: bool = True, num_images: int = 1,
        seed: int | None = None, **options: Unpack[SamplingOptions],
    ) -> dict[str, list[Image]]:  # fmt: skip
        """The same prompt and seeds with each mix: label → images, the base first where it is included."""
        seed = secrets.randbelow(2**31) if seed is None else seed
        mixes: list[Mix] = [*([()] if include_base else []), *lora_configs_list]
        for mix in mixes:
            self._check(mix)
        return {
            mix_label(mix): self.generate(prompt, mix, num_images=num_images, seed=seed, **options) for mix in mixes
        }

    def _check_fits(self, weights: Mapping[str, Any], file: Path) -> None:
        """Before anything is injected: diffusers would stop half way, with layers of a broken adapter left in."""
        for key, down in weights.items():
            path = key.removesuffix(".lora_A.weight")
            if path == key:
                continue
            component, _, inner = path.partition(".")
            try:
                expected = getattr(self.pipeline, component).get_submodule(inner).weight.shape[1:]
            except AttributeError as error:
                raise UsageError(f"{file}: {path} is no module of base model {self.base.name}") from error
            if down.shape[1:] != expected:
                raise UsageError(
                    f"{file}: does not fit base model {self.base.name}: {path} takes {list(expected)}, the adapter "
                    f"{list(down.shape[1:])}; fix: load it on the base it was trained on"
                )

    def _check(self, mix: Mix) -> None:
        names = [name for name, _ in mix]
        known = ", ".join(self.loras) or "none"
        for name in names:
            if name not in self._loaded:
                raise UsageError(f'adapter "{name}" is not loaded; loaded: {known}; fix: load_lora(path, "{name}")')
        if len(set(names)) < len(names):
            raise UsageError(f"{mix_label(mix)}: an adapter stands twice in one mix")

    def _activate(self, mix: Mix) -> None:
        self._check(mix)
        if not self._loaded:
            return
        if not mix:
            self.pipeline.disable_lora()
            return
        self.pipeline.enable_lora()
        self.pipeline.set_adapters([name for name, _ in mix], adapter_weights=[weight for _, weight in mix])

    def _sample(self, batch: Sequence[tuple[str, int]], sampling: Sampling) -> Iterator[Image]:
        import torch
        from PIL import Image

        pixels = self.pipeline(
            prompt=[prompt for prompt, _ in batch],
            negative_prompt=[sampling.negative_prompt] * len(batch),
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance,
            width=sampling.width,
            height=sampling.height,
            clip_skip=sampling.clip_skip - 1 or None,
            generator=[torch.Generator("cpu").manual_seed(seed) for _, seed in batch],
            output_type="pt",
        ).images
        if not pixels.isfinite().all():
            raise VerificationFailed(
                f"{self.base.path}: an image came out as NaN in {self.dtype}; fix: MultiLoRAGenerator(dtype=torch.float32)"
            )
        values = (pixels.float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return (Image.fromarray(image) for image in values)


def mix_label(mix: Mix) -> str:
    """`base`, `anime 0.8`, `anime 0.6 + watercolor 0.4`."""
    return " + ".join(f"{name} {weight:g}" for name, weight in mix) or "base"


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
